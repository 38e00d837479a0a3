"A process that kills itself at an event of its own, whatever the speed of the machine."
import os
import signal
from itertools import count


def die_at(
    n, # number of the event at which the process is killed; 0: never
    *places, # (module, name) of functions: each call is an event, and so is each return
    kill=lambda: os.kill(os.getpid(), signal.SIGKILL), # how the process is killed
    patch=setattr,
):
    "Count events of some functions and kill the process at one; return a function that counts them."
    events, seen = count(1), [0]

    def tick():
        seen[0] = next(events)
        if seen[0] == n: kill()

    def ticking(f):
        def inner(*args, **more):
            tick()
            out = f(*args, **more)
            tick()
            return out
        return inner

    for module, name in places: patch(module, name, ticking(getattr(module, name)))
    return lambda: seen[0]
