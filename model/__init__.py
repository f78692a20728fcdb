"""RapidBERT and the BERT baselines, built from Megatron-core's layers."""

import warnings

# Said by the libraries at every start, on every rank, about things no user of this recipe can set.
for _message in (
    "Transformer Engine and Apex are not installed",
    "full scope is deprecated",
    "`torch.distributed.all_gather_into_tensor` is deprecated",
    "`torch.distributed.reduce_scatter_tensor` is deprecated",
):
    warnings.filterwarnings("ignore", message=_message)
