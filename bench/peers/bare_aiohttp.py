"""Bare aiohttp with orjson and msgspec on uvloop: the practical floor of the library we use."""

import asyncio

import aiohttp
import msgspec
import orjson
import uvloop
from workload import arguments, body, measure, tell


class Message(msgspec.Struct):
    content: str


class Choice(msgspec.Struct):
    message: Message
    finish_reason: str


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class Completion(msgspec.Struct):
    choices: list[Choice]
    usage: Usage
    model: str


async def run(url: str, calls: int, in_flight: int) -> None:
    decoder = msgspec.json.Decoder(Completion)
    numbers = iter(range(calls))
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def worker() -> None:
            for number in numbers:
                async with session.post(url, data=orjson.dumps(body(number))) as response:
                    decoder.decode(await response.read())

        await asyncio.gather(*(worker() for _ in range(in_flight)))


if __name__ == "__main__":
    base, total, width = arguments()
    url = f"{base}/chat/completions"
    tell(measure(total, lambda calls: uvloop.run(run(url, calls, width))))
