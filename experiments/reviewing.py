"""Reviews a run's images in a browser."""

from __future__ import annotations

from pathlib import Path

from clip_ood.config.checks import image_sets
from clip_ood.config.given import GIVEN
from clip_ood.config.schema import Config
from clip_ood.config.set_keys import called
from clip_ood.data.image_list import ImageList
from clip_ood.data.listing import list_images
from clip_ood.errors import UserError
from clip_ood.experiments.resume import begun_with
from clip_ood.review.decisions_file import FILE, read_decisions
from clip_ood.runs.run_folder import SUSPECTS
from clip_ood.serve.application import create_app
from clip_ood.serve.listening import access_at, listen, serve
from clip_ood.serve.review_pages import review_routes
from clip_ood.serve.run_images import RunImages
from clip_ood.serve.run_suspects import suspects_of
from clip_ood.serve.session import Review
from clip_ood.terminal.shown import say


def _lists(config: Config) -> list[ImageList]:
    """Lists the images of the ID sets as they are now, whatever became of their number and their classes since the run."""
    of_id = {key: spec for key, spec in image_sets(config.data).items() if key.partition(".")[0] == "id"}
    anyhow = {"per_class": None, "count": None}
    return [
        list_images(called(key), spec.model_copy(update=anyhow), config.data.root, False, config.seed, download=False)
        for key, spec in of_id.items()
    ]


def review(run: Path, decisions: Path | None, host: str, port: int | None, by: str) -> None:
    """Serves the review of a run until it is ended.

    Decisions go to the file that is named, or else to data.decisions of the run's config, or else to decisions.csv in the run.
    Raises: UserError for images, files or addresses that cannot be had, and for a run whose features were given.
    """
    config = begun_with(run)
    if config.backbone.library == GIVEN:
        raise UserError(
            f"{run} was given its features, and no pictures to show: {run / SUSPECTS} ranks their rows, most suspect first"
        )
    file = decisions or config.data.decisions or run / FILE
    if file.exists():
        read_decisions(file)
    suspects = suspects_of(run)
    images = RunImages(suspects, _lists(config))
    at = listen(host, port)
    access = access_at(host, at.getsockname()[1])
    app = create_app(
        access, [review_routes(Review(suspects, file, images.load, by), images, run.resolve().name, access)]
    )
    say(f"Review of {len(suspects):,} images; decisions are written to {file}. Ctrl-C ends it.")
    serve(app, at, host, access, lambda line: say(line, flush=True))
