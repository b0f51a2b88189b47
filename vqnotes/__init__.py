"""vqnotes: watch vector-quantisation codebooks collapse, measure it, and find out why.

The core, read from left to right, each importing only from those before it: `nearest`, `kmeans`, `quantizers`,
`models`, `training`, `metrics`, `data`, `plots`. On it rest `remedies`, `diagnosis`, `studies` and `course`.
"""

__version__ = "0.2.0"
