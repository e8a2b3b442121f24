"""How to serve callbacks with gunicorn: gunicorn -c gunicorn.conf.py example_app:app."""

bind = "127.0.0.1:8000"
workers = 2
worker_class = "gthread"
# Most of them wait for the same commit.
threads = 16
# OpenIM's client never closes an idle connection, and an event sent on one that the server has just
# closed is lost: keep them longer than any gap between events. The default of 2 seconds loses some.
keepalive = 75
# One read of the settings: what is wrong with them stops the start, not each worker.
preload_app = True
# No access log: the secret segments of the callbacks' paths would be in it.
accesslog = None
