"""The error tree, sorted by what the caller does next.

TargenError
├── UserError      mend the input and start again                       exit 2
├── RunStopped     the run cannot go on; what is paid for is on disk    exit 1
│   └── Starved        what is answered makes no rows
├── ChatError      one call failed
│   ├── RateLimited    wait, then repeat; the request is not to blame
│   ├── Unavailable    back off, then repeat; the request is not to blame
│   ├── ServerFault    repeat a few times; this request may be to blame
│   ├── Rejected       never repeat this request
│   └── Denied         no request can succeed: stop the run
└── ParseError     the model answered in another form than asked for
"""

from targen_async.records import RateLimits


class TargenError(Exception):
    """Base of every error this package raises on purpose."""


class UserError(TargenError):
    """A mistake of the user's: one sentence that names the place and the mend."""


class RunStopped(TargenError):
    """The run cannot go on. What was paid for is in the journal and the run can be resumed."""


class Starved(RunStopped):
    """The endpoint answers, and its answers make no contexts, no seeds or no rows of a label."""


class ChatError(TargenError):
    """A call that brought no answer. `status` is the HTTP status, if there was one."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RateLimited(ChatError):
    """429 (or a 503 with Retry-After). `retry_after_s` is the server's wish, if it had one.

    `rate_limits`: what the refusal said of the limits.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        rate_limits: RateLimits | None = None,
    ) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s
        self.rate_limits = rate_limits


class Unavailable(ChatError):
    """Connection refused, reset or timed out, 502, 503, 504, 529."""

    def __init__(
        self, message: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s


class ServerFault(ChatError):
    """500 and its kin: this request may be what breaks the server, so attempts are counted."""


class Rejected(ChatError):
    """400, 413, 422: this request will never succeed as it stands."""


class Denied(ChatError):
    """401, 402, 403, unknown model, no credit: the whole run is refused.

    `user_fault` tells a wrong key or model (exit 2) from an account that ran dry (exit 1).
    """

    def __init__(self, message: str, *, status: int | None = None, user_fault: bool = True) -> None:
        super().__init__(message, status=status)
        self.user_fault = user_fault


class ParseError(TargenError):
    """The model answered in another form. `kind` is one of Failure's kinds."""

    def __init__(self, message: str, *, kind: str = "malformed") -> None:
        super().__init__(message)
        self.kind = kind


def first_cause(error: BaseException) -> BaseException:
    """What went wrong first, out of the groups that task groups make; our own errors first."""
    causes: list[BaseException] = []

    def collect(one: BaseException) -> None:
        if isinstance(one, BaseExceptionGroup):
            for inner in one.exceptions:
                collect(inner)
        else:
            causes.append(one)

    collect(error)
    return next((cause for cause in causes if isinstance(cause, TargenError)), causes[0])
