"""LangChain calls one after another, as research code does: the number in flight is always one."""

from langchain_openai import ChatOpenAI
from workload import MAX_TOKENS, MODEL, arguments, measure, prompt, tell
from workload import SYSTEM as SYSTEM_TEXT


def main() -> None:
    base, total, _ = arguments()
    chat = ChatOpenAI(model=MODEL, base_url=base, api_key="none", max_tokens=MAX_TOKENS)

    def run(calls: int) -> None:
        for number in range(calls):
            chat.invoke([("system", SYSTEM_TEXT), ("human", prompt(number))])

    tell(measure(total, run))


if __name__ == "__main__":
    main()
