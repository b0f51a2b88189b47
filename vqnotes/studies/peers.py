"""Other people's quantisers, as the diagnosis finds them: its verdicts on their models, and which checks they pass.

Both tables come with the module. tools/libraries_page.py and tools/conformance_page.py make them, and the pages
docs/libraries.md and docs/conformance.md show them.
"""

from pathlib import Path

import pandas as pd

__all__ = ["checks_passed", "verdicts_on_libraries"]

LIBRARIES = Path(__file__).with_name("libraries.csv")
CONFORMANCE = Path(__file__).with_name("conformance.csv")


def verdicts_on_libraries() -> pd.DataFrame:
    """What `diagnose_model` said of small models of libraries, healthy and ill: one row for each model and fault.

    library, version, class and options say what was tried, batch how it was called. fault is "healthy", or what was
    done to the model. verdict is what was said, those of several quantisers joined by "and"; expected what is true,
    and right whether they are the same. refused is what the diagnosis says where the user must describe the
    quantiser first, else "". gradient is whether one passes the quantiser in that call, "yes" or "no"; "" where that
    was not looked at.
    """
    return pd.read_csv(LIBRARIES, keep_default_na=False)


def checks_passed() -> pd.DataFrame:
    """What `diagnosis.conformance.check` said of quantisers of libraries: one row for each quantiser and check.

    library, version and class say what was tried; check is one of `diagnosis.conformance.NAMES`; passed is "passed",
    "failed" or "not applicable"; detail says by which figures.
    """
    return pd.read_csv(CONFORMANCE, keep_default_na=False)
