"""The openai package as most scripts use it: AsyncOpenAI and a semaphore."""

import asyncio

from openai import AsyncOpenAI
from workload import arguments, body, measure, tell


async def run(base: str, calls: int, in_flight: int) -> None:
    semaphore = asyncio.Semaphore(in_flight)
    async with AsyncOpenAI(base_url=base, api_key="none", max_retries=10) as client:

        async def one(number: int) -> str | None:
            async with semaphore:
                answer = await client.chat.completions.create(**body(number))
                return answer.choices[0].message.content

        await asyncio.gather(*(one(number) for number in range(calls)))


if __name__ == "__main__":
    base, total, width = arguments()
    tell(measure(total, lambda calls: asyncio.run(run(base, calls, width))))
