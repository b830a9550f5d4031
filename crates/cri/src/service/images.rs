//! `ImageService`.

use tonic::{Request, Response, Status};

use super::{Messages, Service, in_pieces};
use crate::proto::v1::image_service_server::ImageService;
use crate::proto::v1::{
    ImageFilter, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse,
    ListImagesRequest, ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest,
    RemoveImageResponse, StreamImagesRequest, StreamImagesResponse,
};

fn wanted(filter: Option<ImageFilter>) -> String {
    filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default()
}

fn name(image: Option<ImageSpec>) -> Result<String, Status> {
    let name = image.map(|image| image.image).filter(|name| !name.is_empty());
    name.ok_or_else(|| Status::invalid_argument("image.image: is empty"))
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        let images = self.engine.list_images(&wanted(request.into_inner().filter)).await?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    type StreamImagesStream = Messages<StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.engine.list_images(&wanted(request.into_inner().filter)).await?;
        Ok(Response::new(in_pieces(images, |images| StreamImagesResponse { images })))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let image = self.engine.image_status(&name(request.into_inner().image)?).await?;
        Ok(Response::new(ImageStatusResponse { image, ..ImageStatusResponse::default() }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let image_ref = self.engine.pull_image(&name(request.image)?, request.auth).await?;
        Ok(Response::new(PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        self.engine.remove_image(&name(request.into_inner().image)?).await?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _request: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        let usage = self.engine.filesystem().await?;
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}
