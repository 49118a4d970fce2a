"""Parts are written once they are whole, each once, with what was kept of their batches."""

from __future__ import annotations

from dataclasses import dataclass

from clip_ood.callbacks.part_writer import PartWriter


@dataclass
class Batch:
    part: str
    last: bool


class Doubling(PartWriter):
    """Keeps twice an output."""

    def __init__(self):
        super().__init__()
        self.parts = []

    def see(self, module, batch, outputs):
        return 2 * outputs

    def write(self, module, found):
        self.parts.append([(batch.part, kept) for batch, kept in found])


def test_a_part_is_written_with_its_last_batch():
    writer = Doubling()
    for number, (part, last) in enumerate([("a", False), ("a", False), ("a", True), ("b", True), ("c", False)]):
        writer.on_predict_batch_end(None, None, number, Batch(part, last), number)
    assert writer.parts == [[("a", 0), ("a", 2), ("a", 4)], [("b", 6)]] and writer.written == 2
