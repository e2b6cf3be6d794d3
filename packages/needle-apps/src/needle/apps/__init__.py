"""Models, training loops and the `needle` command, built from needle-nn and needle-data.

`models` holds the networks, `simple_ml` the course's functions, `training` the loop behind the
command line (`cli`), which finds its data with `sources` and keeps models with `checkpoint`.
"""
