"""vqnotes: watch vector-quantisation codebooks collapse, measure it, and find out why.

The modules read from left to right, each importing only from those before it:
`data`, `search`, `kmeans`, `quantizers`, `remedies`, `replacement`, `structured`, `models`, `training`, `metrics`,
`experiments`, `pairing`, `readers`, `figures`, `verdicts`, `diagnosis`, `listening`, `trials`, `records`, `probing`,
`plots`, `checks`.
"""

__version__ = "0.1.0"
