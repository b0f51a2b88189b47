"""vqnotes: watch vector-quantisation codebooks collapse, measure it, and find out why.

The modules read from left to right, each importing only from those before it:
`printing`, `files`, `interrupts`, `downloads`, `data`, `quantizers`, `remedies`, `models`, `training`, `metrics`,
`experiments`, `figures`, `diagnosis`, `probing`, `plots`, `margins`, `checks`.
"""

__version__ = "0.1.0"
