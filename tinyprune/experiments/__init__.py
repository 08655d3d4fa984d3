"""Studies: the paper's claims, tested at a laptop's scale, and pruning methods compared with each other.

    tradeoff   quality against the number of heads that stay, for every method

Each study is one file of `studies`: its models, what they are compared with, its tables. `pictures` draws for all of
them. The models are independent cells (`cells`), made smaller by the `methods`, computed by any
`concurrent.futures.Executor` (`grid`) and stored one by one (`store`). `experiment` leads a study from its first cell
to its report (`results`). A new study is a file in `studies/` and its name below.

`compare` does the same with the cells of one trained model, which may be large.
"""

# The command line needs the names, without importing what the studies need.
STUDIES = ("tradeoff",)
