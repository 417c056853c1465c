# ruff: noqa
# fmt: off
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_KIND_UNSPECIFIED: _ClassVar[ErrorKind]
    BAD_REQUEST: _ClassVar[ErrorKind]
    UNSUPPORTED_OPERATOR: _ClassVar[ErrorKind]
    RUNTIME_CRASHED: _ClassVar[ErrorKind]
    TIMED_OUT: _ClassVar[ErrorKind]
    OUT_OF_MEMORY: _ClassVar[ErrorKind]
    DEVICE_LOST: _ClassVar[ErrorKind]
    BUSY: _ClassVar[ErrorKind]
    UNAUTHORISED: _ClassVar[ErrorKind]
    INTERNAL: _ClassVar[ErrorKind]
    BOARD_NOT_READY: _ClassVar[ErrorKind]

class Availability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AVAILABILITY_UNSPECIFIED: _ClassVar[Availability]
    AVAILABLE: _ClassVar[Availability]
    EMULATED: _ClassVar[Availability]
    SIMULATED: _ClassVar[Availability]
    UNAVAILABLE: _ClassVar[Availability]
    ESTIMATED: _ClassVar[Availability]
    COMPILED: _ClassVar[Availability]
ERROR_KIND_UNSPECIFIED: ErrorKind
BAD_REQUEST: ErrorKind
UNSUPPORTED_OPERATOR: ErrorKind
RUNTIME_CRASHED: ErrorKind
TIMED_OUT: ErrorKind
OUT_OF_MEMORY: ErrorKind
DEVICE_LOST: ErrorKind
BUSY: ErrorKind
UNAUTHORISED: ErrorKind
INTERNAL: ErrorKind
BOARD_NOT_READY: ErrorKind
AVAILABILITY_UNSPECIFIED: Availability
AVAILABLE: Availability
EMULATED: Availability
SIMULATED: Availability
UNAVAILABLE: Availability
ESTIMATED: Availability
COMPILED: Availability

class Error(_message.Message):
    __slots__ = ("kind", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: ErrorKind
    message: str
    def __init__(self, kind: _Optional[_Union[ErrorKind, str]] = ..., message: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "model", "system", "cores", "memory_bytes", "machine", "python")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    system: str
    cores: int
    memory_bytes: int
    machine: str
    python: str
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., system: _Optional[str] = ..., cores: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., machine: _Optional[str] = ..., python: _Optional[str] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("name", "device", "processor", "runtime", "runtime_version", "precision", "availability", "reason", "formats", "resident", "device_time", "options", "max_threads", "defaults")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PROCESSOR_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    AVAILABILITY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TIME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_THREADS_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    device: str
    processor: str
    runtime: str
    runtime_version: str
    precision: str
    availability: Availability
    reason: str
    formats: _containers.RepeatedScalarFieldContainer[str]
    resident: bool
    device_time: bool
    options: _containers.RepeatedScalarFieldContainer[str]
    max_threads: int
    defaults: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., device: _Optional[str] = ..., processor: _Optional[str] = ..., runtime: _Optional[str] = ..., runtime_version: _Optional[str] = ..., precision: _Optional[str] = ..., availability: _Optional[_Union[Availability, str]] = ..., reason: _Optional[str] = ..., formats: _Optional[_Iterable[str]] = ..., resident: bool = ..., device_time: bool = ..., options: _Optional[_Iterable[str]] = ..., max_threads: _Optional[int] = ..., defaults: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("agent_version", "protocol_version", "device", "targets", "max_artifact_bytes", "max_resident_bytes", "chunk_bytes", "activity", "conditions", "isolation")
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    MAX_ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    agent_version: str
    protocol_version: int
    device: Device
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    max_artifact_bytes: int
    max_resident_bytes: int
    chunk_bytes: int
    activity: Activity
    conditions: Conditions
    isolation: Isolation
    def __init__(self, agent_version: _Optional[str] = ..., protocol_version: _Optional[int] = ..., device: _Optional[_Union[Device, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., max_artifact_bytes: _Optional[int] = ..., max_resident_bytes: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., activity: _Optional[_Union[Activity, _Mapping]] = ..., conditions: _Optional[_Union[Conditions, _Mapping]] = ..., isolation: _Optional[_Union[Isolation, _Mapping]] = ...) -> None: ...

class Isolation(_message.Message):
    __slots__ = ("means", "missing")
    MEANS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    means: _containers.RepeatedScalarFieldContainer[str]
    missing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, means: _Optional[_Iterable[str]] = ..., missing: _Optional[_Iterable[str]] = ...) -> None: ...

class Activity(_message.Message):
    __slots__ = ("measuring", "waiting", "target", "step", "done", "total", "elapsed_s")
    MEASURING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_S_FIELD_NUMBER: _ClassVar[int]
    measuring: bool
    waiting: int
    target: str
    step: str
    done: int
    total: int
    elapsed_s: float
    def __init__(self, measuring: bool = ..., waiting: _Optional[int] = ..., target: _Optional[str] = ..., step: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., elapsed_s: _Optional[float] = ...) -> None: ...

class MissingRequest(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sha256: _Optional[_Iterable[str]] = ...) -> None: ...

class MissingResponse(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sha256: _Optional[_Iterable[str]] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("sha256", "size", "chunk")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    size: int
    chunk: bytes
    def __init__(self, sha256: _Optional[str] = ..., size: _Optional[int] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UploadResponse(_message.Message):
    __slots__ = ("already_there",)
    ALREADY_THERE_FIELD_NUMBER: _ClassVar[int]
    already_there: bool
    def __init__(self, already_there: bool = ...) -> None: ...

class TargetSpec(_message.Message):
    __slots__ = ("name", "threads", "options")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    threads: int
    options: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., threads: _Optional[int] = ..., options: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Protocol(_message.Message):
    __slots__ = ("rounds", "calls_per_visit", "warmup_calls", "seed", "artifact_timeout_s", "keep_loaded")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    CALLS_PER_VISIT_FIELD_NUMBER: _ClassVar[int]
    WARMUP_CALLS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    KEEP_LOADED_FIELD_NUMBER: _ClassVar[int]
    rounds: int
    calls_per_visit: int
    warmup_calls: int
    seed: int
    artifact_timeout_s: float
    keep_loaded: bool
    def __init__(self, rounds: _Optional[int] = ..., calls_per_visit: _Optional[int] = ..., warmup_calls: _Optional[int] = ..., seed: _Optional[int] = ..., artifact_timeout_s: _Optional[float] = ..., keep_loaded: bool = ...) -> None: ...

class BenchmarkRequest(_message.Message):
    __slots__ = ("sha256", "target", "protocol", "format")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[str]
    target: TargetSpec
    protocol: Protocol
    format: str
    def __init__(self, sha256: _Optional[_Iterable[str]] = ..., target: _Optional[_Union[TargetSpec, _Mapping]] = ..., protocol: _Optional[_Union[Protocol, _Mapping]] = ..., format: _Optional[str] = ...) -> None: ...

class Conditions(_message.Message):
    __slots__ = ("temperature_c", "frequency_mhz", "load_1m", "steal_share", "throttle_events", "governor", "busy_share", "unwatched")
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_MHZ_FIELD_NUMBER: _ClassVar[int]
    LOAD_1M_FIELD_NUMBER: _ClassVar[int]
    STEAL_SHARE_FIELD_NUMBER: _ClassVar[int]
    THROTTLE_EVENTS_FIELD_NUMBER: _ClassVar[int]
    GOVERNOR_FIELD_NUMBER: _ClassVar[int]
    BUSY_SHARE_FIELD_NUMBER: _ClassVar[int]
    UNWATCHED_FIELD_NUMBER: _ClassVar[int]
    temperature_c: float
    frequency_mhz: float
    load_1m: float
    steal_share: float
    throttle_events: int
    governor: str
    busy_share: float
    unwatched: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, temperature_c: _Optional[float] = ..., frequency_mhz: _Optional[float] = ..., load_1m: _Optional[float] = ..., steal_share: _Optional[float] = ..., throttle_events: _Optional[int] = ..., governor: _Optional[str] = ..., busy_share: _Optional[float] = ..., unwatched: _Optional[_Iterable[str]] = ...) -> None: ...

class Statistics(_message.Message):
    __slots__ = ("median_ms", "p10_ms", "p90_ms", "mean_ms", "min_ms", "samples")
    MEDIAN_MS_FIELD_NUMBER: _ClassVar[int]
    P10_MS_FIELD_NUMBER: _ClassVar[int]
    P90_MS_FIELD_NUMBER: _ClassVar[int]
    MEAN_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_MS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    median_ms: float
    p10_ms: float
    p90_ms: float
    mean_ms: float
    min_ms: float
    samples: int
    def __init__(self, median_ms: _Optional[float] = ..., p10_ms: _Optional[float] = ..., p90_ms: _Optional[float] = ..., mean_ms: _Optional[float] = ..., min_ms: _Optional[float] = ..., samples: _Optional[int] = ...) -> None: ...

class ArtifactResult(_message.Message):
    __slots__ = ("sha256", "error", "wall", "wall_ms", "device_ms", "load_ms", "first_call_ms", "compute_unit", "flags")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WALL_FIELD_NUMBER: _ClassVar[int]
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MS_FIELD_NUMBER: _ClassVar[int]
    LOAD_MS_FIELD_NUMBER: _ClassVar[int]
    FIRST_CALL_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_UNIT_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    error: Error
    wall: Statistics
    wall_ms: _containers.RepeatedScalarFieldContainer[float]
    device_ms: _containers.RepeatedScalarFieldContainer[float]
    load_ms: float
    first_call_ms: float
    compute_unit: str
    flags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sha256: _Optional[str] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., wall: _Optional[_Union[Statistics, _Mapping]] = ..., wall_ms: _Optional[_Iterable[float]] = ..., device_ms: _Optional[_Iterable[float]] = ..., load_ms: _Optional[float] = ..., first_call_ms: _Optional[float] = ..., compute_unit: _Optional[str] = ..., flags: _Optional[_Iterable[str]] = ...) -> None: ...

class BatchConditions(_message.Message):
    __slots__ = ("before", "after", "flags")
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    before: Conditions
    after: Conditions
    flags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, before: _Optional[_Union[Conditions, _Mapping]] = ..., after: _Optional[_Union[Conditions, _Mapping]] = ..., flags: _Optional[_Iterable[str]] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("ahead",)
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    ahead: int
    def __init__(self, ahead: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("step", "done", "total")
    STEP_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    step: str
    done: int
    total: int
    def __init__(self, step: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("error", "elapsed_ms")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_MS_FIELD_NUMBER: _ClassVar[int]
    error: Error
    elapsed_ms: float
    def __init__(self, error: _Optional[_Union[Error, _Mapping]] = ..., elapsed_ms: _Optional[float] = ...) -> None: ...

class BenchmarkEvent(_message.Message):
    __slots__ = ("queued", "progress", "result", "finished", "conditions")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    queued: Queued
    progress: Progress
    result: ArtifactResult
    finished: Finished
    conditions: BatchConditions
    def __init__(self, queued: _Optional[_Union[Queued, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., result: _Optional[_Union[ArtifactResult, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., conditions: _Optional[_Union[BatchConditions, _Mapping]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("sha256", "target", "format", "inputs", "timeout_s")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    target: TargetSpec
    format: str
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    timeout_s: float
    def __init__(self, sha256: _Optional[str] = ..., target: _Optional[_Union[TargetSpec, _Mapping]] = ..., format: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("outputs", "error", "compute_unit")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_UNIT_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    error: Error
    compute_unit: str
    def __init__(self, outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., compute_unit: _Optional[str] = ...) -> None: ...
