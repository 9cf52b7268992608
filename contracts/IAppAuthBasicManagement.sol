// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.0;

import "@openzeppelin/contracts/utils/introspection/IERC165.sol";

/// @title The least that a management tool needs to steer an app's policy
/// @dev No argument of these events is indexed; deployed indexers decode them so.
interface IAppAuthBasicManagement is IERC165 {
    event ComposeHashAdded(bytes32 composeHash);
    event ComposeHashRemoved(bytes32 composeHash);
    event DeviceAdded(bytes32 deviceId);
    event DeviceRemoved(bytes32 deviceId);

    function addComposeHash(bytes32 composeHash) external;

    function removeComposeHash(bytes32 composeHash) external;

    function addDevice(bytes32 deviceId) external;

    function removeDevice(bytes32 deviceId) external;
}
