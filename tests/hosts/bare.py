"""An app that has nothing but ImCallback."""

from flask import Flask

from flask_imcallback import ImCallback

app = Flask(__name__)
app.config.from_prefixed_env()
ImCallback(app)
