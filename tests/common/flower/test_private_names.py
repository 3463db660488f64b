"""The names of Flower's private modules that the adapter uses, and how it calls them.

Flower promises nothing of these. If it moves one, this says which, before a site does.
"""

import importlib
import inspect

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from tacit_common.flower.pieces import CHUNK

PROTOBUF = "flwr.supercore.inflatable.inflatable_protobuf_utils"
CALLS = {  # module:name, and the arguments that it is called with
    "flwr.app.message:make_message": {"metadata", "content", "error"},
    "flwr.app.message:remove_content_from_message": {"message"},
    "flwr.common.serde:message_to_proto": {"message"},
    "flwr.common.serde:run_from_proto": {"run_proto"},
    "flwr.common.serde:fab_to_proto": {"fab"},
    "flwr.common.serde:user_config_to_proto": {"user_config"},
    "flwr.common.serde_utils:metadata_from_proto": {"metadata_proto"},
    "flwr.cli.build:build_fab_from_files": {"files"},
    "flwr.supercore.fab:Fab": {"hash_str", "content", "verifications"},
    "flwr.supercore.inflatable.inflatable_object:get_all_nested_objects": {"obj"},
    "flwr.supercore.inflatable.inflatable_object:get_object_tree": {"obj"},
    "flwr.supercore.inflatable.inflatable_object:get_object_body": {"object_content", "cls"},
    "flwr.supercore.inflatable.inflatable_object:get_object_head_values_from_object_content": {
        "object_content"
    },
    "flwr.supercore.inflatable.inflatable_object:iterate_object_tree": {"tree"},
    "flwr.supercore.inflatable.inflatable_object:no_object_id_recompute": set(),
    f"{PROTOBUF}:make_pull_object_fn_protobuf": {
        "pull_object_protobuf",
        "node",
        "run_id",
    },
    f"{PROTOBUF}:make_push_object_fn_protobuf": {
        "push_object_protobuf",
        "node",
        "run_id",
        "session_id",
    },
    f"{PROTOBUF}:make_confirm_message_received_fn_protobuf": {
        "confirm_message_received_protobuf",
        "node",
        "run_id",
    },
    "flwr.supercore.inflatable.inflatable_utils:push_objects": {
        "objects",
        "push_object_fn",
        "object_ids_to_push",
        "max_concurrent_pushes",
    },
    "flwr.supercore.interceptors:RuntimeTokenHttpInterceptor": {"token"},
    "flwr.supercore.interceptors:SuperExecAuthHttpInterceptor": {
        "master_secret",
        "protected_methods",
    },
    "flwr.supercore.primitives.asymmetric:public_key_to_bytes": {"public_key"},
    "flwr.supercore.protobuf.client:ProtobufClient": {
        "base_url",
        "interceptors",
        "verify",
        "retry_invoker",
    },
    "flwr.supercore.retry:make_simple_http_retry_invoker": set(),
    "flwr.supernode.node_auth_http_interceptor:NodeAuthHttpInterceptor": {
        "private_key",
        "public_key",
    },
}

METHODS = {
    "flwr.supernode.fleet_http_client:FleetHttpClient": {
        "ActivateNode",
        "DeactivateNode",
        "SendNodeHeartbeat",
        "PullMessages",
        "PushMessages",
        "PullObject",
        "PushObject",
        "ConfirmMessageReceived",
    },
    "flwr.supercore.control:ControlHttpClient": {
        "RegisterNode",
        "UnregisterNode",
        "ListNodes",
        "StartRun",
        "StopRun",
        "ListRuns",
    },
    "flwr.supercore.runtime:RuntimeHttpClient": {
        "AcquireTask",
        "PullTaskInput",
        "PushTaskOutput",
        "SendTaskHeartbeat",
        "GetNodes",
        "PullMessages",
        "PushMessages",
        "PullObject",
        "PushObject",
        "ConfirmMessageReceived",
    },
    "flwr.serverapp:Grid": {"push_messages", "pull_messages", "get_node_ids", "set_run", "run"},
    "flwr.supercore.run:Run": {"create_empty"},
    "flwr.supercore.runtime_version_compatibility:RuntimeVersionMetadata": {
        "from_local_component",
        "as_metadata",
    },
}


def found(name: str) -> object:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", CALLS)
def test_a_private_function_takes_what_it_is_given(name: str) -> None:
    called = found(name)
    assert callable(called)
    assert CALLS[name] <= set(inspect.signature(called).parameters)


@pytest.mark.parametrize("name", METHODS)
def test_a_private_class_has_the_methods_that_are_called(name: str) -> None:
    assert METHODS[name] <= set(dir(found(name)))


def test_whose_messages_a_process_makes_can_be_said() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 2, 3
    metadata = Message(RecordDict(), dst_node_id=4, message_type="train").metadata
    assert (metadata.src_task_id, metadata.run_id, metadata.src_node_id) == (1, 2, 3)


def test_arrays_are_cut_into_pieces_of_the_size_that_is_expected() -> None:
    assert found("flwr.common.constant:FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE") == CHUNK


def test_all_kinds_of_pieces_are_known_and_none_is_new() -> None:
    registry = found("flwr.supercore.inflatable.inflatable_utils:inflatable_class_registry")
    assert isinstance(registry, dict)
    assert set(registry) == {
        "Message",
        "RecordDict",
        "ArrayRecord",
        "ConfigRecord",
        "MetricRecord",  # Tacit sends none, and takes none
        "Array",
        "ArrayChunk",
    }
