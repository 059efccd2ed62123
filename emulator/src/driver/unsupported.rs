//! The rest of what libcuda exports: functions that exist, so that clients which look everything up find it,
//! and do nothing but say so. Textures, arrays, graphics, external memory, virtual memory, clusters, several
//! devices, calls older than 64-bit addresses.

use super::Call;
use super::errors::Error;
use super::state::driver;

/// Version of CUDA that introduced it, name. The arguments are ignored: in the C calling conventions of
/// 64-bit systems it is the caller who removes them.
macro_rules! unsupported {
    ($($since:literal $name:ident)*) => {
        $(
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the driver's names")]
            extern "C" fn $name() -> u32 {
                Call::Legacy.run(stringify!($name), || {
                    driver()?.note(concat!(stringify!($name), " is not supported"));
                    Err(Error::NOT_SUPPORTED)
                })
            }
        )*

        pub(super) fn list(entries: &mut Vec<super::Entry>) {
            $(super::enter!(entries $since $name);)*
        }
    };
}

unsupported! {
    2000 cuArray3DCreate 3020 cuArray3DCreate_v2 2000 cuArray3DGetDescriptor 3020 cuArray3DGetDescriptor_v2
    2000 cuArrayCreate 3020 cuArrayCreate_v2 2000 cuArrayDestroy 2000 cuArrayGetDescriptor
    3020 cuArrayGetDescriptor_v2 11060 cuArrayGetMemoryRequirements 11020 cuArrayGetPlane
    11010 cuArrayGetSparseProperties 13041 cuCheckpointOperationComplete 12080 cuCheckpointProcessCheckpoint
    12080 cuCheckpointProcessGetRestoreThreadId 12080 cuCheckpointProcessGetState
    12080 cuCheckpointProcessLock 12080 cuCheckpointProcessRestore 12080 cuCheckpointProcessUnlock
    13020 cuCoredumpDeregisterCompleteCallback 13020 cuCoredumpDeregisterStartCallback
    12010 cuCoredumpGetAttribute 12010 cuCoredumpGetAttributeGlobal 13020 cuCoredumpRegisterCompleteCallback
    13020 cuCoredumpRegisterStartCallback 12010 cuCoredumpSetAttribute 12010 cuCoredumpSetAttributeGlobal
    2000 cuCtxAttach 2000 cuCtxCreate 2000 cuCtxDestroy 2000 cuCtxDetach 12040 cuCtxFromGreenCtx
    12040 cuCtxGetDevResource 11040 cuCtxGetExecAffinity 2000 cuCtxPopCurrent 2000 cuCtxPushCurrent
    12050 cuCtxRecordEvent 12050 cuCtxWaitEvent 10000 cuDestroyExternalMemory
    10000 cuDestroyExternalSemaphore 12040 cuDevResourceGenerateDesc 13010 cuDevSmResourceSplit
    12040 cuDevSmResourceSplitByCount 13041 cuDeviceGetCliqueCount 13041 cuDeviceGetCliqueInfo
    12040 cuDeviceGetDevResource 13041 cuDeviceGetFabricClusterUuid 11040 cuDeviceGetGraphMemAttribute
    13000 cuDeviceGetHostAtomicCapabilities 10000 cuDeviceGetLuid 10020 cuDeviceGetNvSciSyncAttributes
    13000 cuDeviceGetP2PAtomicCapabilities 2000 cuDeviceGetProperties
    11010 cuDeviceGetTexture1DLinearMaxWidth 11040 cuDeviceGraphMemTrim
    12040 cuDeviceRegisterAsyncNotification 11040 cuDeviceSetGraphMemAttribute 2000 cuDeviceTotalMem
    12040 cuDeviceUnregisterAsyncNotification 7000 cuEGLStreamConsumerAcquireFrame
    7000 cuEGLStreamConsumerConnect 8000 cuEGLStreamConsumerConnectWithFlags
    7000 cuEGLStreamConsumerDisconnect 7000 cuEGLStreamConsumerReleaseFrame 7000 cuEGLStreamProducerConnect
    7000 cuEGLStreamProducerDisconnect 7000 cuEGLStreamProducerPresentFrame
    7000 cuEGLStreamProducerReturnFrame 9000 cuEventCreateFromEGLSync 2000 cuEventDestroy
    10000 cuExternalMemoryGetMappedBuffer 10000 cuExternalMemoryGetMappedMipmappedArray
    13050 cuFabricCpyBatchAsync 2000 cuFuncSetSharedSize 2000 cuGLCtxCreate 3020 cuGLCtxCreate_v2
    4010 cuGLGetDevices 6050 cuGLGetDevices_v2 2000 cuGLInit 2000 cuGLMapBufferObject
    2030 cuGLMapBufferObjectAsync 3020 cuGLMapBufferObjectAsync_v2 7000 cuGLMapBufferObjectAsync_v2_ptsz
    3020 cuGLMapBufferObject_v2 7000 cuGLMapBufferObject_v2_ptds 2000 cuGLRegisterBufferObject
    2030 cuGLSetBufferObjectMapFlags 2000 cuGLUnmapBufferObject 2030 cuGLUnmapBufferObjectAsync
    2000 cuGLUnregisterBufferObject 11070 cuGraphAddBatchMemOpNode 10000 cuGraphAddChildGraphNode
    10000 cuGraphAddDependencies 12030 cuGraphAddDependencies_v2 10000 cuGraphAddEmptyNode
    11010 cuGraphAddEventRecordNode 11010 cuGraphAddEventWaitNode
    11020 cuGraphAddExternalSemaphoresSignalNode 11020 cuGraphAddExternalSemaphoresWaitNode
    10000 cuGraphAddHostNode 10000 cuGraphAddKernelNode 12000 cuGraphAddKernelNode_v2
    11040 cuGraphAddMemAllocNode 11040 cuGraphAddMemFreeNode 10000 cuGraphAddMemcpyNode
    10000 cuGraphAddMemsetNode 12020 cuGraphAddNode 12030 cuGraphAddNode_v2 13041 cuGraphAddNode_v3
    11070 cuGraphBatchMemOpNodeGetParams 11070 cuGraphBatchMemOpNodeSetParams
    10000 cuGraphChildGraphNodeGetGraph 12030 cuGraphConditionalHandleCreate 11030 cuGraphDebugDotPrint
    10000 cuGraphDestroyNode 11010 cuGraphEventRecordNodeGetEvent 11010 cuGraphEventRecordNodeSetEvent
    11010 cuGraphEventWaitNodeGetEvent 11010 cuGraphEventWaitNodeSetEvent
    11070 cuGraphExecBatchMemOpNodeSetParams 11010 cuGraphExecChildGraphNodeSetParams
    11010 cuGraphExecEventRecordNodeSetEvent 11010 cuGraphExecEventWaitNodeSetEvent
    11020 cuGraphExecExternalSemaphoresSignalNodeSetParams
    11020 cuGraphExecExternalSemaphoresWaitNodeSetParams 13010 cuGraphExecGetId
    10020 cuGraphExecHostNodeSetParams 10010 cuGraphExecKernelNodeSetParams
    12000 cuGraphExecKernelNodeSetParams_v2 10020 cuGraphExecMemcpyNodeSetParams
    10020 cuGraphExecMemsetNodeSetParams 12020 cuGraphExecNodeSetParams 10020 cuGraphExecUpdate
    11020 cuGraphExternalSemaphoresSignalNodeGetParams 11020 cuGraphExternalSemaphoresSignalNodeSetParams
    11020 cuGraphExternalSemaphoresWaitNodeGetParams 11020 cuGraphExternalSemaphoresWaitNodeSetParams
    13010 cuGraphGetId 10000 cuGraphHostNodeGetParams 10000 cuGraphHostNodeSetParams
    11000 cuGraphKernelNodeCopyAttributes 11000 cuGraphKernelNodeGetAttribute
    10000 cuGraphKernelNodeGetParams 12000 cuGraphKernelNodeGetParams_v2 11000 cuGraphKernelNodeSetAttribute
    10000 cuGraphKernelNodeSetParams 12000 cuGraphKernelNodeSetParams_v2 11040 cuGraphMemAllocNodeGetParams
    11040 cuGraphMemFreeNodeGetParams 10000 cuGraphMemcpyNodeGetParams 10000 cuGraphMemcpyNodeSetParams
    10000 cuGraphMemsetNodeGetParams 10000 cuGraphMemsetNodeSetParams 10000 cuGraphNodeFindInClone
    13010 cuGraphNodeGetContainingGraph 11060 cuGraphNodeGetEnabled 13010 cuGraphNodeGetLocalId
    13020 cuGraphNodeGetParams 13010 cuGraphNodeGetToolsId 11060 cuGraphNodeSetEnabled
    12020 cuGraphNodeSetParams 13041 cuGraphNodeSetParams_v2 11030 cuGraphReleaseUserObject
    10000 cuGraphRemoveDependencies 12030 cuGraphRemoveDependencies_v2 11030 cuGraphRetainUserObject
    7000 cuGraphicsEGLRegisterImage 3000 cuGraphicsGLRegisterBuffer 3000 cuGraphicsGLRegisterImage
    3000 cuGraphicsMapResources 7000 cuGraphicsMapResources_ptsz 7000 cuGraphicsResourceGetMappedEglFrame
    5000 cuGraphicsResourceGetMappedMipmappedArray 3000 cuGraphicsResourceGetMappedPointer
    3020 cuGraphicsResourceGetMappedPointer_v2 3000 cuGraphicsResourceSetMapFlags
    6050 cuGraphicsResourceSetMapFlags_v2 3000 cuGraphicsSubResourceGetMappedArray
    3000 cuGraphicsUnmapResources 7000 cuGraphicsUnmapResources_ptsz 3000 cuGraphicsUnregisterResource
    3010 cuGraphicsVDPAURegisterOutputSurface 3010 cuGraphicsVDPAURegisterVideoSurface
    12040 cuGreenCtxCreate 12040 cuGreenCtxDestroy 12040 cuGreenCtxGetDevResource 12090 cuGreenCtxGetId
    12040 cuGreenCtxRecordEvent 12050 cuGreenCtxStreamCreate 12040 cuGreenCtxWaitEvent
    10000 cuImportExternalMemory 10000 cuImportExternalSemaphore 4010 cuIpcCloseMemHandle
    4010 cuIpcGetEventHandle 4010 cuIpcGetMemHandle 4010 cuIpcOpenEventHandle 4010 cuIpcOpenMemHandle
    11000 cuIpcOpenMemHandle_v2 2000 cuLaunch 2000 cuLaunchGrid 2000 cuLaunchGridAsync
    12000 cuLibraryGetUnifiedFunction 5050 cuLinkAddData 6050 cuLinkAddData_v2 5050 cuLinkAddFile
    6050 cuLinkAddFile_v2 5050 cuLinkComplete 5050 cuLinkCreate 6050 cuLinkCreate_v2 5050 cuLinkDestroy
    13030 cuLogicalEndpointAddDevice 13030 cuLogicalEndpointBindAddr 13030 cuLogicalEndpointBindMem
    13030 cuLogicalEndpointCreate 13030 cuLogicalEndpointDestroy 13030 cuLogicalEndpointExport
    13030 cuLogicalEndpointGetLimits 13030 cuLogicalEndpointIdRelease 13030 cuLogicalEndpointIdReserve
    13030 cuLogicalEndpointImport 13030 cuLogicalEndpointQuery 13030 cuLogicalEndpointUnbind
    12090 cuLogsCurrent 12090 cuLogsDumpToFile 12090 cuLogsDumpToMemory 12090 cuLogsRegisterCallback
    12090 cuLogsUnregisterCallback 10020 cuMemAddressFree 10020 cuMemAddressReserve 2000 cuMemAlloc
    2000 cuMemAllocHost 2000 cuMemAllocPitch 12060 cuMemBatchDecompressAsync
    12060 cuMemBatchDecompressAsync_ptsz 10020 cuMemCreate 13000 cuMemDiscardAndPrefetchBatchAsync
    13000 cuMemDiscardAndPrefetchBatchAsync_ptsz 13000 cuMemDiscardBatchAsync
    13000 cuMemDiscardBatchAsync_ptsz 10020 cuMemExportToShareableHandle 2000 cuMemFree 10020 cuMemGetAccess
    2000 cuMemGetAddressRange 10020 cuMemGetAllocationGranularity
    10020 cuMemGetAllocationPropertiesFromHandle 11070 cuMemGetHandleForAddressRange 2000 cuMemGetInfo
    13041 cuMemGetLocationInfo 2020 cuMemHostGetDevicePointer 4000 cuMemHostRegister
    10020 cuMemImportFromShareableHandle 10020 cuMemMap 11010 cuMemMapArrayAsync
    11010 cuMemMapArrayAsync_ptsz 11020 cuMemPoolExportPointer 11020 cuMemPoolExportToShareableHandle
    11020 cuMemPoolImportFromShareableHandle 11020 cuMemPoolImportPointer 13000 cuMemPrefetchBatchAsync
    13000 cuMemPrefetchBatchAsync_ptsz 8000 cuMemRangeGetAttribute 8000 cuMemRangeGetAttributes
    10020 cuMemRelease 11000 cuMemRetainAllocationHandle 10020 cuMemSetAccess 10020 cuMemUnmap
    2000 cuMemcpy2D 2000 cuMemcpy2DAsync 2000 cuMemcpy2DUnaligned 2000 cuMemcpy3D 2000 cuMemcpy3DAsync
    3020 cuMemcpy3DAsync_v2 7000 cuMemcpy3DAsync_v2_ptsz 12080 cuMemcpy3DBatchAsync
    12080 cuMemcpy3DBatchAsync_ptsz 13000 cuMemcpy3DBatchAsync_v2 13000 cuMemcpy3DBatchAsync_v2_ptsz
    4000 cuMemcpy3DPeer 4000 cuMemcpy3DPeerAsync 7000 cuMemcpy3DPeerAsync_ptsz 7000 cuMemcpy3DPeer_ptds
    13020 cuMemcpy3DWithAttributesAsync 13020 cuMemcpy3DWithAttributesAsync_ptsz 3020 cuMemcpy3D_v2
    7000 cuMemcpy3D_v2_ptds 2000 cuMemcpyAtoA 3020 cuMemcpyAtoA_v2 7000 cuMemcpyAtoA_v2_ptds
    2000 cuMemcpyAtoD 3020 cuMemcpyAtoD_v2 7000 cuMemcpyAtoD_v2_ptds 2000 cuMemcpyAtoH
    2000 cuMemcpyAtoHAsync 3020 cuMemcpyAtoHAsync_v2 7000 cuMemcpyAtoHAsync_v2_ptsz 3020 cuMemcpyAtoH_v2
    7000 cuMemcpyAtoH_v2_ptds 12080 cuMemcpyBatchAsync 12080 cuMemcpyBatchAsync_ptsz
    13000 cuMemcpyBatchAsync_v2 13000 cuMemcpyBatchAsync_v2_ptsz 2000 cuMemcpyDtoA 3020 cuMemcpyDtoA_v2
    7000 cuMemcpyDtoA_v2_ptds 2000 cuMemcpyDtoD 3000 cuMemcpyDtoDAsync 2000 cuMemcpyDtoH
    2000 cuMemcpyDtoHAsync 2000 cuMemcpyHtoA 2000 cuMemcpyHtoAAsync 3020 cuMemcpyHtoAAsync_v2
    7000 cuMemcpyHtoAAsync_v2_ptsz 3020 cuMemcpyHtoA_v2 7000 cuMemcpyHtoA_v2_ptds 2000 cuMemcpyHtoD
    2000 cuMemcpyHtoDAsync 13020 cuMemcpyWithAttributesAsync 13020 cuMemcpyWithAttributesAsync_ptsz
    2000 cuMemsetD16 2000 cuMemsetD2D16 2000 cuMemsetD2D32 2000 cuMemsetD2D8 2000 cuMemsetD32
    2000 cuMemsetD8 5000 cuMipmappedArrayCreate 5000 cuMipmappedArrayDestroy 5000 cuMipmappedArrayGetLevel
    11060 cuMipmappedArrayGetMemoryRequirements 11010 cuMipmappedArrayGetSparseProperties
    2000 cuModuleGetGlobal 3000 cuModuleGetSurfRef 2000 cuModuleGetTexRef 12010 cuMulticastAddDevice
    12010 cuMulticastBindAddr 13010 cuMulticastBindAddr_v2 12010 cuMulticastBindMem
    13010 cuMulticastBindMem_v2 12010 cuMulticastCreate 12010 cuMulticastGetGranularity
    12010 cuMulticastUnbind 2000 cuParamSetSize 2000 cuParamSetTexRef 2000 cuParamSetf 2000 cuParamSeti
    2000 cuParamSetv 10000 cuSignalExternalSemaphoresAsync 10000 cuSignalExternalSemaphoresAsync_ptsz
    8000 cuStreamBatchMemOp 8000 cuStreamBatchMemOp_ptsz 11070 cuStreamBatchMemOp_v2
    11070 cuStreamBatchMemOp_v2_ptsz 10000 cuStreamBeginCapture 13010 cuStreamBeginCaptureToCig
    13010 cuStreamBeginCaptureToCig_ptsz 12030 cuStreamBeginCaptureToGraph
    12030 cuStreamBeginCaptureToGraph_ptsz 10000 cuStreamBeginCapture_ptsz
    13030 cuStreamBeginRecaptureToGraph 11000 cuStreamCopyAttributes 11000 cuStreamCopyAttributes_ptsz
    2000 cuStreamDestroy 13010 cuStreamEndCaptureToCig 13010 cuStreamEndCaptureToCig_ptsz
    11000 cuStreamGetAttribute 11000 cuStreamGetAttribute_ptsz 13010 cuStreamGetDevResource
    13010 cuStreamGetDevResource_ptsz 12040 cuStreamGetGreenCtx 11000 cuStreamSetAttribute
    11000 cuStreamSetAttribute_ptsz 11030 cuStreamUpdateCaptureDependencies
    11030 cuStreamUpdateCaptureDependencies_ptsz 12030 cuStreamUpdateCaptureDependencies_v2
    12030 cuStreamUpdateCaptureDependencies_v2_ptsz 8000 cuStreamWaitValue32 8000 cuStreamWaitValue32_ptsz
    11070 cuStreamWaitValue32_v2 11070 cuStreamWaitValue32_v2_ptsz 9000 cuStreamWaitValue64
    9000 cuStreamWaitValue64_ptsz 11070 cuStreamWaitValue64_v2 11070 cuStreamWaitValue64_v2_ptsz
    8000 cuStreamWriteValue32 8000 cuStreamWriteValue32_ptsz 11070 cuStreamWriteValue32_v2
    11070 cuStreamWriteValue32_v2_ptsz 9000 cuStreamWriteValue64 9000 cuStreamWriteValue64_ptsz
    11070 cuStreamWriteValue64_v2 11070 cuStreamWriteValue64_v2_ptsz 5000 cuSurfObjectCreate
    5000 cuSurfObjectDestroy 5000 cuSurfObjectGetResourceDesc 3000 cuSurfRefGetArray 3000 cuSurfRefSetArray
    12000 cuTensorMapEncodeIm2col 12080 cuTensorMapEncodeIm2colWide 12000 cuTensorMapEncodeTiled
    12000 cuTensorMapReplaceAddress 13050 cuTensorMapSetAllocationClass 5000 cuTexObjectCreate
    5000 cuTexObjectDestroy 5000 cuTexObjectGetResourceDesc 5000 cuTexObjectGetResourceViewDesc
    5000 cuTexObjectGetTextureDesc 2000 cuTexRefCreate 2000 cuTexRefDestroy 2000 cuTexRefGetAddress
    2000 cuTexRefGetAddressMode 3020 cuTexRefGetAddress_v2 2000 cuTexRefGetArray 8000 cuTexRefGetBorderColor
    2000 cuTexRefGetFilterMode 2000 cuTexRefGetFlags 2000 cuTexRefGetFormat 5000 cuTexRefGetMaxAnisotropy
    5000 cuTexRefGetMipmapFilterMode 5000 cuTexRefGetMipmapLevelBias 5000 cuTexRefGetMipmapLevelClamp
    5000 cuTexRefGetMipmappedArray 2000 cuTexRefSetAddress 2020 cuTexRefSetAddress2D
    3020 cuTexRefSetAddress2D_v2 4010 cuTexRefSetAddress2D_v3 2000 cuTexRefSetAddressMode
    3020 cuTexRefSetAddress_v2 2000 cuTexRefSetArray 8000 cuTexRefSetBorderColor 2000 cuTexRefSetFilterMode
    2000 cuTexRefSetFlags 2000 cuTexRefSetFormat 5000 cuTexRefSetMaxAnisotropy
    5000 cuTexRefSetMipmapFilterMode 5000 cuTexRefSetMipmapLevelBias 5000 cuTexRefSetMipmapLevelClamp
    5000 cuTexRefSetMipmappedArray 11030 cuUserObjectCreate 11030 cuUserObjectRelease
    11030 cuUserObjectRetain 3010 cuVDPAUCtxCreate 3020 cuVDPAUCtxCreate_v2 3010 cuVDPAUGetDevice
    2020 cuWGLGetDevice 10000 cuWaitExternalSemaphoresAsync 10000 cuWaitExternalSemaphoresAsync_ptsz
}
