"""ID training images that are left out of the bank by name."""

from __future__ import annotations

import pytest
import tiny_clip

import eval as evaluation


@pytest.mark.parametrize(
    ("lines", "message"),
    [(None, "there is no file"), (["cat/99.png"], "names cat/99.png, which is no ID training image")],
)
def test_a_list_of_images_to_leave_out_is_checked(root, lines, message):
    path = root / "left_out.txt"
    path.unlink(missing_ok=True)
    if lines:
        path.write_text("\n".join(lines))
    config = tiny_clip.config(root, "left_out", {"zero_shot": {}})
    with pytest.raises(ValueError, match=message):
        evaluation.main(["--config", config, f"--evaluation.bank_without={path}"])
