"""Pages for a browser on this machine, and predictions for programs.

`application.py` makes the applications, which others extend by routes, and `listening.py` serves them. `access.py` decides which browser
may ask for what, `callers.py` which program.

A request for predictions comes through `timed_protocol.py` and `bodies.py`, within `limits.py`; `given_images.py` finds its images,
`judge.py` prepares and judges them, in `batches.py`; `predict_routes.py` joins these. `detectors.py` swaps the detector, `figures.py` counts,
`state_routes.py` tells.

A review is `session.py`, over the images of a run by `run_suspects.py` and draws by `drawn.py`; `review_pages.py` has its
routes, with pictures by `run_images.py`.
"""
