"""What schemathesis loads to send JSON lines."""

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def json_lines(_, value):
    return {"data": value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value}
