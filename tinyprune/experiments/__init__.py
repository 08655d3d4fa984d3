"""Studies: the paper's claims, tested at a laptop's scale, and pruning methods compared with each other.

    tradeoff       quality against the number of heads kept, for every method
    map            gates against criteria, over share of heads, length of the gate stage and healing
    ablation       gates without each of the three stabilisers, and without a converged model to start from
    stabilisers    curves of bits against heads at a fixed lam, with and without each stabiliser
    tuning         learning rate, initial weights and weight decay of every kind of model, by the same trials
    parity         whole models of every kind over lengths of training, and what causes a gap between them
    architecture   All-attention, heads with networks and Transformer-XL at equal parameters, all pruned

Each study is one file of `studies`: its models, what they are compared with, its tables and its pictures. The models
are independent cells (`cells`), computed by any `concurrent.futures.Executor` (`grid`) and stored one by one (`store`);
`running` leads a study from its first cell to its report. A new study is a file in `studies/` and its name below.
`comparing` prunes one trained model, which may be large, by every method; `compared` writes what it found.
"""

# The command line needs the names, without importing what the studies need.
STUDIES = ("tradeoff", "map", "ablation", "stabilisers", "tuning", "parity", "architecture")
