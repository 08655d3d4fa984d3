"""Studies: the paper's claims tried at a laptop's scale, and pruning compared with pruning.

    tradeoff       quality against heads that stay, for every method
    ablation       gates without each of the three stabilisers, and without a converged model to start from
    architecture   All-attention against Transformer-XL at equal parameters, both pruned

A study is a grid of cells that need nothing of each other (`cells`), computed by any `concurrent.futures.Executor`
(`grid`), kept one by one (`store`), and told in tables (`results`) and pictures (`pictures`).
"""

# Written out here, so that the command line knows them without importing what they need.
STUDIES = ("tradeoff", "ablation", "architecture")
