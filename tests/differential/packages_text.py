"""Packages for language and its models; nothing is fetched."""

from differential.programs import EVERYTHING, program


@program(group="text")
def hub_cache_by_variable():
    import os

    os.environ["HF_HOME"] = "/somewhere/hf"
    from huggingface_hub import constants

    return [constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE]


@program(group="text", env={"HF_HOME": "/of/the/request", "HF_HUB_OFFLINE": "1"})
def hub_cache_of_the_request():
    from huggingface_hub import constants

    return [constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE]


@program(group="text")
def hub_cache_left_alone():
    from huggingface_hub import constants

    return [constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE]


@program(group="text")
def transformers_configuration():
    import transformers

    config = transformers.BertConfig(hidden_size=8, num_attention_heads=2)
    return [config.hidden_size, config.model_type, transformers.logging.get_verbosity()]


@program(group="text")
def transformers_verbosity_by_variable():
    import os

    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import transformers

    return transformers.logging.get_verbosity()


@program(group="text")
def tokenizers_words():
    import tokenizers

    model = tokenizers.models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return [encoded.ids for encoded in tokenizer.encode_batch(["a b c", "b"] * 20)][:2]


@program(group="text")
def tokenizers_in_forked_children():
    import os

    import tokenizers

    model = tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    pid = os.fork()
    if not pid:
        tokenizer.encode_batch(["a", "b"] * 50)
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@program(group="text")
def datasets_map(scratch):
    import datasets

    datasets.disable_progress_bars()
    data = datasets.Dataset.from_dict({"a": [1, 2, 3]})
    return data.map(lambda row: {"b": row["a"] * 2})["b"][:]


@program(group="text", fresh=("fingerprint",))
def datasets_fingerprint():
    import datasets

    return {"fingerprint": datasets.fingerprint.generate_random_fingerprint()}


@program(group="text")
def safetensors_round_trip():
    import numpy
    import safetensors.numpy

    data = safetensors.numpy.save({"a": numpy.arange(3)})
    return [len(data), safetensors.numpy.load(data)["a"].tolist()]


@program(group="text")
def spacy_tokens():
    import spacy

    document = spacy.blank("en")("Don't panic, Ada: it's 5 o'clock.")
    return [token.text for token in document]


@program(group="text", fresh=("text",))
def faker_names():
    import faker

    fake = faker.Faker()
    seeded = faker.Faker()
    seeded.seed_instance(4)
    return {"text": " ".join(fake.name() for _ in range(4)), "seeded": seeded.name()}


@program(group="text")
def faker_with_its_shared_seed():
    import faker

    faker.Faker.seed(7)
    return faker.Faker().name()


@program(group="text")
def regex_matches():
    import regex

    return [
        regex.findall(r"\p{Lu}\w+", "Ada and Émile"),
        bool(regex.match(r"(?:cats){e<=1}", "cat")),
    ]


@program(group="text")
def langchain_prompts():
    from langchain_core.prompts import PromptTemplate
    from langchain_core.runnables import RunnableLambda

    chain = PromptTemplate.from_template("say {x}") | RunnableLambda(lambda prompt: prompt.text)
    return chain.invoke({"x": "hello"})


@program(group="text")
def tiktoken_bytes():
    import tiktoken

    ranks = {bytes([number]): number for number in range(256)} | {b"ab": 256}
    encoding = tiktoken.Encoding("tiny", pat_str=r".+", mergeable_ranks=ranks, special_tokens={})
    return [encoding.encode("abba"), encoding.decode([256, 98])]


@program(group="text", fresh=(EVERYTHING,))
def identities_of_requests():
    from huggingface_hub import constants
    from transformers.utils import hub

    assert constants.HF_HUB_CACHE
    return hub.SESSION_ID
