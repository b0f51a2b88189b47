"""Models of other libraries: each is installed by `make libraries-test`, and its case is skipped where it is not."""

import libraries_page as page
import pytest
from library_models import CASES

RIGHT = ["healthy", "token collapse", "token collapse"]
NAMES = [f"{case.package} {case.name}" for case in CASES]


@pytest.mark.filterwarnings("default")  # the libraries warn of each other
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_healthy_and_two_ill_models_are_told_apart(case):
    if not page.installed(case):
        pytest.skip(f"{case.package} is not installed: make libraries-test")
    found = page.cells(page.diagnoses(case))
    assert found[:-1] == RIGHT
    assert found == page.stored()[case.package, case.name]


def test_the_page_has_every_case_and_no_other():
    assert list(page.stored()) == [(case.package, case.name) for case in CASES]
