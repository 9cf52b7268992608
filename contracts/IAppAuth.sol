// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.0;

import "@openzeppelin/contracts/utils/introspection/IERC165.sol";

/// @title Boot authorization of one app
/// @notice The KMS contract asks the contract at `appId` whether a machine that proved these measurements may
/// receive the app's keys. An app owner may register any contract that answers this question.
interface IAppAuth is IERC165 {
    /// @notice What attestation proved about the caller. The order of the fields is part of the ABI.
    struct AppBootInfo {
        address appId;
        bytes32 composeHash;
        address instanceId;
        bytes32 deviceId;
        bytes32 mrAggregated;
        bytes32 mrSystem;
        bytes32 osImageHash;
        string tcbStatus;
        string[] advisoryIds;
    }

    /// @return isAllowed whether keys may be released
    /// @return reason empty when allowed, otherwise the sentence that the operator sees
    function isAppAllowed(AppBootInfo calldata bootInfo) external view returns (bool isAllowed, string memory reason);
}
