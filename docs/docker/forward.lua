-- Orthanc passes each radiograph on to the node, but for what the node sent itself.
function OnStoredInstance(instanceId, tags, metadata, origin)
  local fromNode = origin.RequestOrigin == 'DicomProtocol' and origin.RemoteAet == 'MEDSD'
  if not fromNode and (tags.Modality == 'DX' or tags.Modality == 'CR') then
    SendToModality(instanceId, 'medsd')
  end
end
