"""What a design of an ablation may look like."""

import pytest
from pydantic import ValidationError

from slime_ray.config.design import Cell, Design


def cell(label: str, *, center: str = "paper", reference: str = "full") -> Cell:
    return Cell(label=label, center=center, variant=label, reference=reference)


def test_cells_are_compared_within_their_center():
    design = Design(
        kind="leave_one_out",
        cells=[
            cell("full"),
            cell("without-anchor"),
            cell("weak-full", center="weak", reference="weak-full"),
            cell("weak-without-anchor", center="weak", reference="weak-full"),
        ],
    )
    assert design.centers == ["paper", "weak"]
    assert [found.label for found in design.around("weak")] == ["weak-full", "weak-without-anchor"]
    assert design.reference("weak").label == "weak-full"
    assert Design.of({"experiment": {"design": design.model_dump(mode="json")}}) == design
    assert Design.of({"experiment": {}}) is None


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        ([cell("full"), cell("full")], "two have the same label"),
        ([cell("without-anchor"), cell("without-soft-margin")], "paper has 0 cells"),
        ([cell("full"), cell("other", reference="other")], "paper has 2 cells"),
        ([cell("full"), cell("a", reference="b"), cell("b")], "a is compared with b, not with full"),
    ],
)
def test_a_design_without_exactly_one_reference_in_a_center_is_refused(cells, complaint):
    with pytest.raises(ValidationError, match=complaint):
        Design(kind="leave_one_out", cells=cells)
