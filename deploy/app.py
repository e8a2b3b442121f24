"""An app for a server or a container. All settings come from the environment."""

from flask import Flask

from flask_imcallback import ImCallback

app = Flask(__name__)
app.config.from_prefixed_env()
imcallback = ImCallback(app)


@app.get("/alive")
def alive() -> str:
    """Answer a probe that must succeed even while the database is unavailable."""
    return "alive\n"
