"""Studies: the paper's claims, tested at a laptop's scale, and pruning methods compared with each other.

    tradeoff   quality against the number of heads that stay, for every method

A study is one file, `tradeoff`: its models, what they are compared with, its tables. The models are independent cells
(`cells`), made smaller by the `methods`, computed by any `concurrent.futures.Executor` (`grid`) and stored one by one
(`store`). `results` and `intervals` make tables of their records, `pictures` draws these.

`compare` does the same with the cells of one trained model, which may be large. `atlas` leaves out each of its parts
alone.
"""

# The command line needs the names, without importing what the studies need.
STUDIES = ("tradeoff",)
