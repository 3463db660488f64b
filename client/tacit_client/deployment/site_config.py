"""What `site.toml` says: which data a site has, how it is read, and whom the site knows."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tacit_common.enrolment import Address, SiteName
from tacit_common.ledger_chain import Hex64
from tacit_common.study import ColumnSubjects, FolderSubjects, FunctionSubjects, PluginName

SiteSubjects = Annotated[
    ColumnSubjects | FolderSubjects | FunctionSubjects, Field(discriminator="by")
]
"""Where a site's subjects are written. Pretended ones are for rehearsals alone."""

OPENING = "The configuration of a Tacit data site. A change counts at the next start."


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CoordinatorAccess(_Section):
    """The one coordinator that this site answers."""

    name: SiteName = Field(description="Its name, for people.")
    address: Address = Field(description="host:port of its gateway.")
    public_key: Hex64 = Field(
        description="Its Ed25519 key. A request that another key signed is refused."
    )


class WitnessAccess(_Section):
    """Who countersigns the ledger, so that one that was rolled back is caught."""

    address: Address = Field(
        description="host:port of the witness.", examples=["witness.example.org:9444"]
    )
    public_key: Hex64 = Field(
        description="Its Ed25519 key. A countersignature of another key counts for nothing."
    )


class SiteConfig(_Section):
    """The configuration of one data site. Nothing of it ever leaves the site, but for `site`
    and `declared_units`.
    """

    site: SiteName = Field(description="The site's name, as its ledger and its card have it.")
    data: str = Field(
        min_length=1,
        description="The data set: a .npy, .npz, .parquet, .csv or .jsonl file, a folder of images "
        "or of class folders; or a name under [plugins]. A path begins with '/'.",
    )
    lineage: str = Field(
        min_length=1,
        max_length=100,
        description="What the operator calls the data set: the same name, the same people. "
        "Everything ever released of one name adds up, also where files change.",
    )
    declared_units: int = Field(
        ge=1,
        description="How many units (records, or subjects where they are the policy's unit) the "
        "site says it has: public, and rounded down by hand. The true count never leaves.",
    )
    labels: bool = Field(
        description="Whether probes may use the classes that the data set has. Without them no "
        "probe is answered."
    )
    class_names: tuple[str, ...] | None = Field(
        default=None,
        description="The names of all classes of the federation, in the order of their numbers. "
        "Sites that do not all hold every class need the same list.",
        examples=[["benign", "malignant"]],
    )
    identity_channels: int = Field(
        default=3,
        ge=1,
        le=16,
        description="Channels in which the ledger knows a record again; 3 for grey and coloured "
        "images. With another number every record looks new, and is charged as if it may be "
        "any of the old ones.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the site trains; `auto` takes a GPU if there is one."
    )
    physical_batch: int = Field(
        default=64, ge=1, le=65536, description="Records whose gradients are formed at once."
    )
    poll_s: float = Field(
        default=0.2, ge=0.05, le=60, description="Seconds between two looks for a request."
    )
    health_address: Address | None = Field(
        default=None,
        description="host:port of the gRPC health service (`tacit health`). It answers whoever "
        "reaches it, and says no more than whether the site works. Left out: none.",
        examples=["127.0.0.1:9445"],
    )
    subjects: SiteSubjects | None = Field(
        default=None,
        description="Which records belong to one subject; each to itself if left out. One of "
        "{ by = 'column', column = 'patient' }, { by = 'folder', level = 1 } and "
        "{ by = 'function', name = 'a name under [plugins]' }.",
    )
    plugins: dict[PluginName, str] = Field(
        default_factory=dict,
        description="What plug-in names mean here: name = 'module:attribute'. Only what stands "
        "here is ever imported, whatever a coordinator asks.",
    )
    coordinator: CoordinatorAccess
    witness: WitnessAccess | None = None

    @property
    def data_path(self) -> Path | None:
        """Where the data set is; None where a plug-in is its source."""
        return None if self.data in self.plugins else Path(self.data)

    @model_validator(mode="after")
    def _data_can_be_found(self) -> Self:
        if self.data_path is None:
            if self.subjects is not None:
                raise ValueError("a data set that is a plug-in names subjects by its own unit_of")
        elif not self.data_path.is_absolute():
            raise ValueError(
                f"data '{self.data}' is no name under [plugins], and no path from '/' on, which "
                "a service needs"
            )
        return self
