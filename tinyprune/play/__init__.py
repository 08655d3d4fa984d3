"""A web page in which one plays with a model: `page` writes it, from page.html and the scripts beside it."""
