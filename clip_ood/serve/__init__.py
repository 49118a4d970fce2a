"""Pages for a browser on this machine.

`application.py` makes the application, which others extend by routes, `access.py` decides who may ask it for what, `listening.py`
serves it, and `review_pages.py` has the routes of a review, with pictures by `run_images.py`.
"""
