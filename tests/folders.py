"""A folder of each family as one finds it on the Hub: tiny weights, real processor classes."""

import json

import tiny
import transformers as hf
import zoo
from tokenizers import Tokenizer, models, pre_tokenizers


def tokenizer(family):
    case = zoo.example(family)
    special = case.special
    words = {special.get(word, word): i for i, word in enumerate(tiny.WORDS)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=dict(case.named),
        padding_side="left",
    )
    others = sorted({"<image>", *special.values()} & words.keys())
    made.add_special_tokens({"extra_special_tokens": others}, replace_extra_special_tokens=False)
    return made


def save(family, folder):
    """Write the folder: weights, tokenizer, chat template, and the processor's settings."""
    zoo.model(family).save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    images = zoo.image_processor(family).to_dict()
    images["image_processor_type"] = images["image_processor_type"].removesuffix("Pil")
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    kind = hf.PROCESSOR_MAPPING[type(hf.AutoConfig.from_pretrained(folder))].__name__
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": kind, **zoo.example(family).settings})
    )
    template = tiny.CHAT_TEMPLATE.replace("<image>", zoo.example(family).picture)
    (folder / "chat_template.jinja").write_text(template)
    return folder
