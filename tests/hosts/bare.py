"""An app with flask-imcallback and nothing else."""

from flask import Flask

from flask_imcallback import ImCallback

app = Flask(__name__)
app.config.from_prefixed_env()
ImCallback(app)
