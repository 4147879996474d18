"""The built-in model is made here: dataset, training, merging. Extra `train`; the server never imports it."""
