"""The only room that writes SQL: tables, ids, recorder, writer, spool, counters, migrations."""
