"""The same in Django: its ORM, one transaction, connections that are kept."""

from __future__ import annotations

import json
import os

import django
import pymysql
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, models, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden, JsonResponse
from django.urls import path
from django.utils import timezone
from django.views.decorators.http import require_POST
from sqlalchemy import make_url

pymysql.install_as_MySQLdb()
url = make_url(os.environ["DATABASE_URL"])
database = {
    "ENGINE": f"django.db.backends.{url.get_backend_name().replace('sqlite', 'sqlite3')}",
    "NAME": url.database,
    "USER": url.username or "",
    "HOST": url.host or "",
    "PORT": url.port or "",
    "CONN_MAX_AGE": None,
}
if url.get_backend_name() == "sqlite":
    database["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
    }
settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": database},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ["SECRET"],
    USE_TZ=True,
)
django.setup()


class Callback(models.Model):
    received_at = models.DateTimeField()
    provider = models.CharField(max_length=32)
    command = models.CharField(max_length=255)
    request_id = models.CharField(max_length=255)
    body = models.TextField()

    class Meta:
        app_label = "contender"
        db_table = "callback"


class Removal(models.Model):
    # As in the other contenders, no index on it.
    callback = models.ForeignKey(Callback, on_delete=models.CASCADE, db_index=False)
    received_at = models.DateTimeField()
    relation = models.CharField(max_length=16)
    owner_id = models.CharField(max_length=255, db_index=True)
    target_id = models.CharField(max_length=255, db_index=True)

    class Meta:
        app_label = "contender"
        db_table = "removal"


def store(
    request: HttpRequest, provider: str, command: str, relation: str, pairs: list[tuple[str, str]]
) -> None:
    now = timezone.now()
    with transaction.atomic():
        callback = Callback.objects.create(
            received_at=now,
            provider=provider,
            command=command,
            request_id=request.GET.get("RequestId", ""),
            body=request.body.decode(),
        )
        Removal.objects.bulk_create(
            Removal(callback=callback, received_at=now, relation=relation, owner_id=o, target_id=t)
            for o, t in pairs
        )


@require_POST
def tencent(request: HttpRequest, secret: str) -> HttpResponse:
    if secret != os.environ["SECRET"]:
        return HttpResponseForbidden()
    try:
        packet = json.loads(request.body)
        command = packet["CallbackCommand"]
        pairs = [(pair["From_Account"], pair["To_Account"]) for pair in packet["PairList"]]
    except (ValueError, KeyError, TypeError):
        return JsonResponse({"ActionStatus": "FAIL"}, status=400)
    store(request, "tencent", command, "friend", pairs)
    return JsonResponse({"ActionStatus": "OK", "ErrorCode": 0, "ErrorInfo": ""})


@require_POST
def openim(request: HttpRequest, secret: str, command: str) -> HttpResponse:
    if secret != os.environ["SECRET"]:
        return HttpResponseForbidden()
    try:
        packet = json.loads(request.body)
        pair = (packet["ownerUserID"], packet["blackUserID"])
    except (ValueError, KeyError, TypeError):
        return JsonResponse({"errCode": 1}, status=400)
    store(request, "openim", command, "blacklist", [pair])
    return JsonResponse({"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0})


urlpatterns = [
    path("imcallback/tencent/<secret>", tencent),
    path("imcallback/openim/<secret>/<command>", openim),
]
app = get_wsgi_application()

if __name__ == "__main__":
    with connection.schema_editor() as editor:
        editor.create_model(Callback)
        editor.create_model(Removal)
