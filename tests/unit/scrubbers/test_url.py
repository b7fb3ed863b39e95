from __future__ import annotations

import pytest

from scrubbers import reduce_url

_UUID = "550e8400-e29b-41d4-a716-446655440000"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        (
            "https://jane:pw@app.example.com/a/4711/edit?t=x#y",
            "https://app.example.com/a/<id>/edit",
        ),
        (f"/api/v1/orders/{_UUID}/items", "/api/v1/orders/<id>/items"),
        ("/api/v2.1/users/jane/posts", "/api/v2.1/users/<id>/posts"),
        ("/users/me", "/users/me"),
        ("/users/:id/posts/{post_id}", "/users/:id/posts/{post_id}"),
        ("/mail/jane@example.com", "/mail/<id>"),
        ("/jane%20doe/x", "/<id>/x"),
        ("/@jane", "/<id>"),
        ("/jane.doe", "/<id>"),
        ("/index.html", "/index.html"),
        ("/x;jsessionid=1A2B", "/x"),
        ("/getUserById", "/getUserById"),
        ("/dQwXgWcQaB", "/<id>"),
        ("/0123456789abcdef", "/<id>"),
        ("http://203.0.113.7:8080/a", "http://<ip>:8080/a"),
        ("http://[2001:db8::1]/a", "http://<ip>/a"),
        ("http://0x7f.1/", "http://<ip>/"),
        ("https://ip-203-0-113-77.ec2.internal/", "https://<ip>/"),
        ("http://localhost:3000/a", "http://localhost:3000/a"),
        ("http://127.0.0.1:3000/a", "http://127.0.0.1:3000/a"),
        ("localhost:3000/a", "localhost:3000/a"),
        ("//cdn.example.com/x.js", "//cdn.example.com/x.js"),
        ("https://exämple.example/a", "https://exämple.example/a"),
        ("https://<b>.example.com/", "https://<redacted>/"),
        ("data:text/plain,hi", "data:"),
        ("javascript:alert(1)", "javascript:"),
        ("MAILTO:jane@example.com", "mailto:"),
        (f"blob:https://app.example.com/{_UUID}", "blob:https://app.example.com/<id>"),
        ("file:///home/jane/x.html", "file:///<id>"),
        ("jane:pw@host", "<redacted>"),
        ("?q=jane", ""),
        ("", ""),
    ],
)
def test_a_url_becomes_a_template(url: str, wanted: str) -> None:
    assert reduce_url(url) == wanted


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/home/jane/app/views.py", "/home/<user>/app/views.py"),
        ("/Users/jane/x.py", "/Users/<user>/x.py"),
        (r"C:\Users\Jane Doe\x.py", r"C:\Users\<user>\x.py"),
        (r"C:\\Users\\jane\\x.py", r"C:\\Users\\<user>\\x.py"),
        (r"\\server\Users\jane\x.py", r"\\server\Users\<user>\x.py"),
        ("file:///Users/jane/x.js", "file:///Users/<user>/x.js"),
        ("file:///C%3A/Users/jane%20doe/x.js", "file:///C%3A/Users/<user>/x.js"),
        ("%2Fhome%2Fjane%2Fx.js", "%2Fhome%2F<user>%2Fx.js"),
        ("webpack:///home/jane/x.js", "webpack:///home/<user>/x.js"),
        ("~jane/x.py", "~<user>/x.py"),
        ("https://u:p@cdn.example.com/a.4f3a.js?v=1#x", "https://cdn.example.com/a.4f3a.js"),
        ("https://203.0.113.7/main.js", "https://<ip>/main.js"),
        ("uploads/jane@example.com/x.py", "uploads/<email>/x.py"),
        ("data:text/javascript,alert(1)", "data:"),
    ],
)
def test_a_code_path_keeps_all_but_people(path: str, wanted: str) -> None:
    assert reduce_url(path, keep_path=True) == wanted


@pytest.mark.parametrize(
    "path",
    [
        "app/views.py",
        "node:internal/process/task_queues",
        "webpack:///./src/a.js",
        "webpack-internal:///./src/a.js",
        "app:///main.js",
        "<string>",
        "src/users/list.js",
        "/src/views/home/index.py",
        "/usr/lib/python3.11/site-packages/x.py",
        "node_modules/@sentry/node/index.js",
        "node_modules/.pnpm/lodash@4.17.21/x.js",
        "/src/C#/x.cs",
        "/home/<user>/app.py",
    ],
)
def test_a_path_that_names_only_code_stays(path: str) -> None:
    assert reduce_url(path, keep_path=True) == path


def test_a_path_of_any_length_or_content_is_no_error() -> None:
    for text in ("/" * 100_000, "\ud800", "http://[", "://", "\x00", "a:" * 5_000, "%" * 5_000):
        for keep_path in (False, True):
            assert len(reduce_url(text, keep_path=keep_path).encode()) <= 4_096


@pytest.mark.parametrize(
    ("name", "reduced"),
    [
        ("generic WSGI request", "generic WSGI request"),
        ("app.views.save", "app.views.save"),
        ("POST /api/projects/4711", "POST /api/projects/<id>"),
        ("GET https://jane:pw@app.example.com/p/4711?x=1", "GET https://app.example.com/p/<id>"),
        ("4711", "<id>"),
    ],
)
def test_a_transaction_may_be_a_name_or_a_method_and_a_place(name: str, reduced: str) -> None:
    assert reduce_url(name) == reduced
    assert reduce_url(reduced) == reduced
