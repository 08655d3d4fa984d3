"""The method: choose the parts that stay, remove the others, repair and heal what stays.

prune                           the page: begin here
recipe, texts                   its settings and who watches; what it reads
gates                           choosing by gates, their loss and the controller
choose, criteria                choosing without gates, by scores
fits, least_squares             what a block adds, as a least-squares problem; choosing by it
masks                           scores become masks, masks become models
remove, repair                  steps 2 and 3
roles                           what each head attends to
"""
