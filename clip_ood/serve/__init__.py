"""Pages for a browser on this machine.

`application.py` makes the application, which others extend by routes, `access.py` decides who may ask it for what, `listening.py`
serves it. A review is `session.py`, over the images of a run by `run_suspects.py` and draws by `drawn.py`; `review_pages.py` has its
routes, with pictures by `run_images.py`.
"""
