"""The operations between the matmuls, one file each."""
