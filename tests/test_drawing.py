"""The picture of a diagnosis shows the numbers that it rests on."""

import matplotlib.pyplot as plt
import pytest
from helpers import normal

from vqnotes.diagnosis import diagnose, diagnose_stack, draw


def test_a_diagnosis_shows_its_evidence_in_four_panels():
    latents = normal(400, 3)
    found = diagnose(latents, latents[:8] * 0.01, inputs=latents)
    figure, axes = plt.subplots(2, 2)
    frame = draw(axes, found)
    for name, yours, reference in frame.itertuples(index=False):
        assert (yours, reference) == found.evidence[name][:2]
    assert list(frame["name"]) == [
        "error / variance",
        "lost by the encoder",
        "lost with the best codes",
        "dimensions filled",
    ]
    bars = [patch.get_width() for patch in axes[1, 0].patches]
    assert bars == [*frame["yours"][:3], *frame["reference"][:3]]
    assert [label.get_text() for label in axes[1, 0].get_yticklabels()] == list(frame["name"][:3])
    assert [text.get_text() for text in axes[1, 0].get_legend().get_texts()] == ["yours", "reference"]
    for place, line in enumerate(axes[1, 1].lines[:2]):  # shares of a whole, of latents and then of the codes used
        assert line.get_ydata().sum() == pytest.approx(1) and line.get_label() == ("latents", "codes used")[place]
    assert axes[1, 1].lines[2].get_xdata()[0] == frame["reference"][3]
    figure.tight_layout()
    figure.canvas.draw()
    for ax in axes[1]:
        assert ax.get_legend().get_window_extent().y1 < ax.bbox.y0  # hides nothing that is drawn
    uses = axes[0, 1].get_xlabel()
    assert uses and all(ax.get_title() for ax in axes.flat)
    with pytest.raises(ValueError, match="four axes, got 2"):
        draw(axes[0], found)
    with pytest.raises(ValueError, match="codes put together"):
        draw(axes, diagnose_stack([[(latents, latents[:8], None)]]).whole)
    plt.close(figure)
