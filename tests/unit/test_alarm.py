"""What rings in the background ends what is waited for, once."""

import asyncio

import pytest

from actors.alarm import Alarm
from rlpost.errors import ActorError, LostError


async def forever(ended):
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(True)


async def answer():
    return 42


def test_the_alarm_calls_the_work_off_and_is_silent_again():
    async def play():
        alarm, ended = Alarm(), []
        asyncio.get_running_loop().call_soon(alarm.ring, LostError("learner-0 died"))
        with pytest.raises(LostError, match="learner-0 died"):
            await alarm.watch(forever(ended))
        return ended, await alarm.watch(answer())

    assert asyncio.run(play()) == ([True], 42)


def test_the_first_of_several_counts_and_only_what_was_seen_to_is_forgotten():
    async def play():
        alarm = Alarm()
        alarm.ring(LostError("learner-0 died"))
        alarm.ring(ActorError("too many"))
        alarm.forget(LostError)
        assert await alarm.watch(answer()) == 42
        alarm.ring(ActorError("too many"))
        alarm.forget(LostError)
        with pytest.raises(ActorError, match="too many"):
            await alarm.watch(forever([]))

    asyncio.run(play())


def test_who_calls_the_watch_off_calls_the_work_off():
    async def play():
        ended = []
        watching = asyncio.ensure_future(Alarm().watch(forever(ended)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        return ended

    assert asyncio.run(play()) == [True]
