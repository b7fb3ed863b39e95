"""A Kafka broker for tests, in this process: librdkafka's mock cluster.

It comes inside the confluent-kafka wheel and is reached through ctypes; nothing of it is ever used
outside tests. It speaks the real protocol over loopback TCP and can be told to fail. What it does
not do: compact topics, keep more than a few megabytes for each partition, or answer ApiVersions in
a way kafka-python reads; clients pin ``api_version=(2, 3)`` (`MockKafka.CLIENT_OPTIONS`).

Source:
    librdkafka, ``src/rdkafka_mock.h``.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, ClassVar, Final, Self

__all__ = ["MockKafka"]

_PRODUCER: Final = 0
_PRODUCE: Final = 0  # ApiKey of a produce request
_OFFSET_COMMIT: Final = 8


def _library() -> ctypes.CDLL:
    """Load the librdkafka that the confluent-kafka wheel brings.

    Raises:
        ImportError: The wheel is not installed, or holds no such library.
    """
    import confluent_kafka  # noqa: PLC0415 - only tests have it

    beside = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    found = sorted(beside.glob("librdkafka*"))
    if not found:
        raise ImportError("the confluent-kafka wheel holds no librdkafka")
    library = ctypes.CDLL(str(found[0]))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, number]),
        ("rd_kafka_mock_cluster_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_topic_create", number, [pointer, text, number, number]),
        ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_down", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", number, [pointer, ctypes.c_int32]),
        (
            "rd_kafka_mock_partition_delete_records",
            number,
            [pointer, text, ctypes.c_int32, ctypes.c_int64],
        ),
        (
            "rd_kafka_mock_push_request_errors_array",
            None,
            [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(number)],
        ),
    ):
        function: Any = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class MockKafka:
    """One mock broker on a loopback port. Use as context manager.

    Attributes:
        bootstrap: ``host:port`` for clients.
    """

    CLIENT_OPTIONS: ClassVar[dict[str, Any]] = {"api_version": (2, 3)}

    def __init__(self) -> None:
        self._library = library = _library()
        reason = ctypes.create_string_buffer(256)
        self._client = library.rd_kafka_new(
            _PRODUCER, library.rd_kafka_conf_new(), reason, len(reason)
        )
        if not self._client:
            raise OSError(reason.value.decode())
        self._cluster = library.rd_kafka_mock_cluster_new(self._client, 1)
        self.bootstrap = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_topic(self, name: str, partitions: int) -> None:
        """Create a topic. One that a client asks for first is created with four partitions."""
        error = self._library.rd_kafka_mock_topic_create(
            self._cluster, name.encode(), partitions, 1
        )
        if error:
            raise OSError(f"mock Kafka: error {error}")

    def expire(self, topic: str, partition: int, before: int) -> None:
        """Remove records below an offset, as a topic's retention does."""
        error = self._library.rd_kafka_mock_partition_delete_records(
            self._cluster, topic.encode(), partition, before
        )
        if error:
            raise OSError(f"mock Kafka: error {error}")

    def fail_produce(self, *errors: int) -> None:
        """Answer the next produce requests with these error codes."""
        self._push(_PRODUCE, errors)

    def fail_commit(self, *errors: int) -> None:
        """Answer the next offset commits with these error codes."""
        self._push(_OFFSET_COMMIT, errors)

    def _push(self, api_key: int, errors: tuple[int, ...]) -> None:
        array = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, api_key, len(errors), array
        )

    def down(self) -> None:
        """Refuse connections until `up`."""
        self._library.rd_kafka_mock_broker_set_down(self._cluster, 1)

    def up(self) -> None:
        """Take connections again. The data is still there."""
        self._library.rd_kafka_mock_broker_set_up(self._cluster, 1)

    def close(self) -> None:
        """End the broker and forget everything."""
        if self._client:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._library.rd_kafka_destroy(self._client)
            self._client = None
