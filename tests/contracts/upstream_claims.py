"""Which of our tests hold what each test of upstream's forge suite claims (Dstack-TEE/dstack at 312dc605).

The suite itself runs against our contracts by `contracts/upstream_suite/run.mjs`, which needs a checkout of
upstream's; these run everywhere, on anvil and on py-evm.
"""

from typing import Final

_ACCESS, _ARTIFACTS = "tests/contracts/test_access.py", "tests/contracts/test_artifacts.py"
_DECISIONS, _EVENTS = "tests/contracts/test_decisions.py", "tests/contracts/test_events.py"
_STATE = "tests/contracts/test_state.py"

_KMS_STRANGER = f"{_ACCESS}::test_kms_refuses_a_stranger"
_APP_STRANGER = f"{_ACCESS}::test_app_refuses_a_stranger"
_KMS_LISTS = f"{_STATE}::test_kms_lists_what_was_added_until_it_is_removed"
_APP_LISTS = f"{_STATE}::test_app_lists_what_was_added_until_it_is_removed"
_FLAGS = f"{_STATE}::test_a_flag_of_the_app_is_what_was_set_last"
_NEW_APP = f"{_STATE}::test_a_new_app_has_its_owner_and_what_it_was_given"
_MOVES = f"{_ACCESS}::test_ownership_moves_only_when_it_is_accepted"
_FIVE = f"{_ACCESS}::test_five_argument_factory_leaves_the_tcb_requirement_off"
_SIX = f"{_ACCESS}::test_six_argument_factory_passes_every_flag"
_TCB = f"{_DECISIONS}::test_app_that_requires_tcb_compares_the_status_byte_for_byte"
_INTERFACES = f"{_ACCESS}::test_erc165_names_what_each_contract_is"
_KEEPS = f"{_STATE}::test_both_contracts_keep_everything_over_their_upgrades"
_UPGRADES = f"{_ACCESS}::test_owner_upgrades_and_state_stays"
_LAYOUT = f"{_ARTIFACTS}::test_storage_layout_equals_upstreams"
_REPLAYED = f"{_STATE}::test_the_audit_events_alone_tell_the_state"

CLAIMS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "EventAudit": {
        "test_KmsPolicyEventsReconstructQueriedState": (_REPLAYED, f"{_EVENTS}::test_kms_change_is_audited"),
        "test_AppPolicyEventsReconstructQueriedState": (_REPLAYED, f"{_EVENTS}::test_app_change_is_audited"),
        "test_InvalidMutationEmitsNoAuditAndLeavesNoPartialState": (
            f"{_STATE}::test_a_refused_change_leaves_no_event_and_no_state",
        ),
        "test_ReorgDropsOrphanEventAndCanonicalEventRebuildsState": (
            f"{_STATE}::test_a_reorg_drops_the_event_with_the_state",
        ),
        "test_UpgradeAuditIncludesActorAndImplementation": (
            f"{_EVENTS}::test_upgrade_is_audited_before_it_happens",
        ),
    },
    "DstackApp": {
        "test_Initialize": (_NEW_APP,),
        "test_InitializeWithData": (_NEW_APP,),
        "test_AddComposeHash": (_APP_LISTS,),
        "test_RemoveComposeHash": (_APP_LISTS,),
        "test_AddDevice": (_APP_LISTS,),
        "test_RemoveDevice": (_APP_LISTS,),
        "test_SetAllowAnyDevice": (_FLAGS,),
        "test_OnlyOwnerFunctions": (_APP_STRANGER,),
        "test_IsAppAllowed": (f"{_DECISIONS}::test_app_is_allowed_when_image_compose_and_device_are",),
        "test_RejectUnallowedComposeHash": (f"{_DECISIONS}::test_app_needs_an_allowed_compose_hash",),
        "test_Version": (f"{_ACCESS}::test_app_is_version_two",),
        "test_RequireTcbUpToDate_DefaultFalseAfter5ArgInit": (_FIVE,),
        "test_SetRequireTcbUpToDate": (_FLAGS, f"{_EVENTS}::test_app_change_is_audited"),
        "test_SetRequireTcbUpToDate_OnlyOwner": (_APP_STRANGER,),
        "test_IsAppAllowed_RejectsOutdatedTcbWhenRequired": (
            _TCB,
            f"{_DECISIONS}::test_app_that_requires_tcb_is_allowed_when_up_to_date",
        ),
        "test_Initialize6Arg_RequireTcbUpToDateTrue": (_SIX, _TCB),
        "test_Initialize6Arg_RequireTcbUpToDateFalse": (_NEW_APP,),
        "test_SupportsInterface": (_INTERFACES,),
        "test_TransferOwnership_StagesPendingWithoutChangingOwner": (_MOVES,),
        "test_AcceptOwnership_CompletesTransfer": (_MOVES,),
    },
    "DstackKms": {
        "test_Initialize": (f"{_EVENTS}::test_kms_initializer_emits_in_upstreams_order",),
        "test_SetKmsInfo": (f"{_EVENTS}::test_kms_info_keeps_what_was_set",),
        "test_SetKmsInfoOnlyOwner": (_KMS_STRANGER,),
        "test_AddKmsAggregatedMr": (_KMS_LISTS,),
        "test_RemoveKmsAggregatedMr": (_KMS_LISTS,),
        "test_RegisterApp": (f"{_ACCESS}::test_anyone_may_register_an_app",),
        "test_DeployAndRegisterApp": (_NEW_APP, f"{_ACCESS}::test_anyone_may_make_an_app"),
        "test_SetGatewayAppId": (f"{_STATE}::test_the_gateway_is_what_was_set_last",),
        "test_AddAndRemoveKmsDevice": (_KMS_LISTS,),
        "test_AddAndRemoveOsImageHash": (_KMS_LISTS,),
        "test_SetKmsQuoteAndEventlog": (f"{_EVENTS}::test_kms_info_keeps_what_was_set",),
        "test_IsKmsAllowed": (f"{_DECISIONS}::test_kms_is_allowed_when_image_measurement_and_device_are",),
        "test_IsKmsAllowed_RejectOutdatedTcb": (f"{_DECISIONS}::test_kms_always_needs_an_up_to_date_tcb",),
        "test_IsAppAllowed_CompleteFlow": (
            f"{_DECISIONS}::test_app_is_allowed_when_image_compose_and_device_are",
        ),
        "test_SetAppImplementation": (
            f"{_STATE}::test_apps_are_made_of_the_implementation_that_was_set_last",
        ),
        "test_SupportsInterface": (_INTERFACES,),
        "test_TransferOwnership_StagesPendingWithoutChangingOwner": (_MOVES,),
        "test_AcceptOwnership_CompletesTransfer": (_MOVES, f"{_STATE}::test_rights_follow_the_ownership"),
        "test_TransferOwnership_OnlyOwner": (_KMS_STRANGER,),
        "test_AcceptOwnership_OnlyPendingOwner": (f"{_ACCESS}::test_only_the_pending_owner_accepts",),
        "test_TransferOwnership_RetargetInvalidatesPriorPending": (
            f"{_STATE}::test_a_new_target_of_the_transfer_replaces_the_one_before",
        ),
        "test_OwnerOnlyFunctionsFollowOwnershipAfterTransfer": (
            f"{_STATE}::test_rights_follow_the_ownership",
        ),
    },
    # that their checker of upgrades passes is shown by the suite itself alone; the layouts are compared here
    "UpgradesWithPlugin": {
        "test_DeployUUPSProxy": (f"{_EVENTS}::test_kms_initializer_emits_in_upstreams_order", _LAYOUT),
        "test_DeployAppUUPSProxy": (_NEW_APP, _LAYOUT),
        "test_UpgradeKmsProxy": (_UPGRADES, _KEEPS),
        "test_UpgradeAppProxy": (_UPGRADES, _KEEPS),
        "test_UpgradeWithInitialization": (
            f"{_STATE}::test_an_upgrade_may_call_the_new_code_in_one_transaction",
        ),
        "test_ValidationChecks": (
            _LAYOUT,
            f"{_ARTIFACTS}::test_storage_gap_keeps_its_size",
            f"{_ARTIFACTS}::test_the_renamed_slot_keeps_its_annotation_for_the_upgrade_checker",
        ),
        "test_CannotUpgradeWhenDisabled": (f"{_ACCESS}::test_app_may_disable_upgrades_for_ever",),
        "test_OnlyOwnerCanUpgrade": (f"{_ACCESS}::test_stranger_may_not_upgrade",),
        "test_UpgradeFromOldInit_TcbDefaultsFalseAndCanBeEnabled": (
            f"{_STATE}::test_an_app_of_the_old_initializer_may_ask_for_tcb_after_its_upgrade",
        ),
        "test_FactoryDeploysAppWith6ArgInit_TcbEnforced": (_SIX, _TCB),
        "test_FactoryDeploysAppWith5ArgInit_TcbDefaultsFalse": (_FIVE,),
        "test_ComplexUpgradeScenario": (_KEEPS,),
    },
}
