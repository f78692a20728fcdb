"""The model for transformers: `modeling_rapidbert.py`, which stands by itself in every export."""
