"""Settings for gunicorn in this folder. gunicorn reads this file even if no option names it."""

from flask_imcallback.gunicorn import *  # noqa: F403
