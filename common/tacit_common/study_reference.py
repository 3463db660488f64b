"""The study's fields as a page of Markdown, built from the models themselves.

`tacit study schema` prints it, and docs/study.md holds it.
"""

from tacit_common.field_reference import field_reference
from tacit_common.study import StudyFile

EXAMPLE_STUDY = """\
name = "my-first-study"
seed = 0

[encoder]
kind = "vit"
image_size = 8
channels = 1
patch_size = 2
width = 32
depth = 2
heads = 4

[objective]
kind = "masked"
style = "mae"
mask_ratio = 0.6

[privacy]                      # nothing here has a default
mode = "local"
unit = "record"
epsilon = 8.0
delta = 1e-5
l2_clip_norm = 0.5
sampling_rate = 0.3

[federation]
rounds = 5
local_steps = 4
client_lr = 0.2
strategy = { kind = "fedavg" }

[warm_start]                   # on public images, before the first round
steps = 200

[[probes]]                     # one such section a probe
kind = "ridge"
classes = 10
epsilon = 2.0

[simulation]                   # stays on your machine, like [plugins]
dataset = "digits"
sites = 5
partition = { kind = "dirichlet", alpha = 0.3 }
declared_units = 250
"""

_OPENING = f"""\
# The study file

A study is one TOML file: what is trained, on what terms, and how it is judged. A key
that is not on this page is refused, and nothing that bears on privacy has a default.
`[simulation]` and `[plugins]` stay with you; all else travels to every site.

```toml
{EXAMPLE_STUDY}```

`tacit study check STUDY.toml` says whether a study can run and what it would cost, and
`tacit study show STUDY.toml` prints it with every default filled in. `--set` changes one
field: `--set privacy.epsilon=4`, `--set probes.0.epsilon=1`.
"""


def study_reference() -> str:
    """Markdown: an example, then every section in the order of the file, with its fields."""
    return "\n".join([_OPENING, *field_reference(StudyFile)])
