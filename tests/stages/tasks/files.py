"""Small files in the layouts in which the tasks' makers hand them out."""

import json

CAT, DOG = "the cat sat on the mat", 'a "dog barked'
"""The second one has a quotation mark alone, as some of GLUE's rows have."""

GLUE_FILES = {
    "CoLA": {
        "train.tsv": f"gj04\t1\t\t{CAT}\ngj04\t0\t*\t{DOG}\n",
        "dev.tsv": f"gj04\t0\t*\t{DOG}\n",
    },
    "SST-2": {
        "train.tsv": f"sentence\tlabel\n{CAT}\t1\n{DOG}\t0\n",
        "dev.tsv": f"sentence\tlabel\n{DOG}\t0\n",
    },
    "MRPC": {  # begins with a byte order mark
        "train.tsv": f"\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t10\t11\t{CAT}\t{DOG}\r\n0\t12\t13\t{DOG}\t{CAT}\r\n",
        "dev.tsv": f"\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n0\t12\t13\t{DOG}\t{CAT}\r\n",
    },
    "STS-B": {
        name: "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n" + rows
        for name, rows in {
            "train.tsv": f"0\tg\tf\t2012\t1\tnone\tnone\t{CAT}\t{DOG}\t3.800\n1\tg\tf\t2012\t2\tnone\tnone\t{DOG}\t{CAT}\t0.0\n",
            "dev.tsv": f"0\tg\tf\t2012\t1\tnone\tnone\t{DOG}\t{CAT}\t5.000\n",
        }.items()
    },
    "QQP": {
        "train.tsv": (
            f"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\t{CAT}\t{DOG}\t1\n4\t5\tbroken row\n"
            f"6\t7\t8\t{DOG}\t{CAT}\t0\n"
        ),
        "dev.tsv": f"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n6\t7\t8\t{DOG}\t{CAT}\t0\n",
    },
    "MNLI": {
        "train.tsv": (
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
            f"sentence1\tsentence2\tlabel1\tgold_label\n0\t1\t1n\tfiction\t(\t(\t(\t(\t{CAT}\t{DOG}\tneutral\tneutral\n"
            f"1\t2\t2c\tfiction\t(\t(\t(\t(\t{DOG}\t{CAT}\tcontradiction\tcontradiction\n"
        ),
        **{
            f"dev_{kind}.tsv": (
                "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
                "sentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
                f"0\t1\t1e\tfiction\t(\t(\t(\t(\t{CAT}\t{DOG}\tentailment\tneutral\tneutral\tneutral\tneutral\t{label}\n"
            )
            for kind, label in (("matched", "entailment"), ("mismatched", "neutral"))
        },
    },
    "QNLI": {
        "train.tsv": f"index\tquestion\tsentence\tlabel\n0\t{CAT}\t{DOG}\tentailment\n1\t{DOG}\t{CAT}\tnot_entailment\n",
        "dev.tsv": f"index\tquestion\tsentence\tlabel\n0\t{DOG}\t{CAT}\tnot_entailment\n",
    },
    "RTE": {
        "train.tsv": f"index\tsentence1\tsentence2\tlabel\n0\t{CAT}\t{DOG}\tnot_entailment\n1\t{DOG}\t{CAT}\tentailment\n",
        "dev.tsv": f"index\tsentence1\tsentence2\tlabel\n0\t{DOG}\t{CAT}\tentailment\n",
    },
    "WNLI": {
        "train.tsv": f"index\tsentence1\tsentence2\tlabel\n0\t{CAT}\t{DOG}\t1\n1\t{DOG}\t{CAT}\t0\n",
        "dev.tsv": f"index\tsentence1\tsentence2\tlabel\n0\t{DOG}\t{CAT}\t0\n",
    },
}


def write_files(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode("utf-8"))
    return folder


def write_glue(folder, kind):
    """A task's folder: two examples to learn from, one to be scored on."""
    return write_files(folder, GLUE_FILES[kind])


def write_phrases(folder):
    """SST-2 in 90 and 10 phrases, of which one is in both files."""
    rows = {"train.tsv": range(90), "dev.tsv": range(89, 99)}
    files = {
        name: "sentence\tlabel\n" + "".join(f"phrase {n}\t{n % 2}\n" for n in numbers) for name, numbers in rows.items()
    }
    return write_files(folder, files)


def squad_json(articles):
    """SQuAD's JSON for `{title: [(context, [(question, [answer, ...])])]}`; an answer is where it first stands in the context."""
    data = [
        {
            "title": title,
            "paragraphs": [
                {
                    "context": context,
                    "qas": [
                        {
                            "id": f"{title}-{place}-{number}",
                            "question": question,
                            "answers": [{"text": text, "answer_start": context.index(text)} for text in answers],
                        }
                        for number, (question, answers) in enumerate(questions)
                    ],
                }
                for place, (context, questions) in enumerate(paragraphs)
            ],
        }
        for title, paragraphs in articles.items()
    ]
    return json.dumps({"version": "1.1", "data": data})
