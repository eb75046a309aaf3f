//! `http_request` and what belongs to it, as functions of the guest's.

use wasmtime::{Caller, Linker};

use super::{
    abi::{MODULE, give, take},
    kernel::Kernel,
    state::{GuestState, HostTrap},
};
use crate::engine::http::{HttpError, MAX_REQUEST, Response};

pub(super) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.func_wrap_async(
        MODULE,
        "http_request",
        |mut caller: Caller<'_, GuestState>, (request, body): (u64, u64)| {
            Box::new(async move { http_request(&mut caller, request, body).await })
        },
    )?;
    linker
        .func_wrap(MODULE, "http_status_code", |caller: Caller<'_, GuestState>| i32::from(caller.data().http.status))?;
    linker.func_wrap(MODULE, "http_headers", |mut caller: Caller<'_, GuestState>| {
        let headers = caller.data().http.headers();
        give(&mut caller, headers.as_bytes())
    })?;
    Ok(())
}

async fn http_request(caller: &mut Caller<'_, GuestState>, request: u64, body: u64) -> wasmtime::Result<u64> {
    caller.data_mut().http = Response::default();
    if Kernel::length(&*caller, request) > MAX_REQUEST {
        return Err(HostTrap::Failed(format!("the HTTP request, less its body, is over {MAX_REQUEST} bytes")).into());
    }
    let shared = caller.data().shared.clone();
    let request = shared.http.read(&take(caller, request, "http request")?).map_err(HostTrap::from)?;
    let body = if body == 0 { None } else { Some(take(caller, body, "http request body")?) };
    let (response, body) = shared.http.send(request, body).await.map_err(HostTrap::from)?;
    caller.data_mut().http = response;
    give(caller, &body)
}

impl From<HttpError> for HostTrap {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Failed(text) => HostTrap::Failed(text),
            HttpError::Broken(text) => HostTrap::Broken(text),
        }
    }
}
